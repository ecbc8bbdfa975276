"""What tests of codecs share: an update that was really sent."""

from pathlib import Path

import numpy as np
import pytest

from fedmq.codecs import Geometry


@pytest.fixture(scope="session")
def recorded() -> tuple[Geometry, np.ndarray, np.ndarray]:
    """The top-1 % of an update of the MLP 784-128-10, with error feedback: geometry, positions and signs.

    It is the 136th in a federation of 10 clients with 1,000 images of Fashion-MNIST each (labels spread as Dir(0.3),
    FedBuff with K = 5, one epoch, batches of 32, learning rate 0.05). The file holds little-endian int32: positions,
    and of those with a minus sign the complement.
    """
    file = Path(__file__).parent.parent / "golden" / "updates" / "mlp-topk-0.01.bin"
    numbers = np.fromfile(file, "<i4").astype(np.int32)
    geometry = Geometry(((1, 128), (128, 784), (1, 10), (10, 128)))
    return geometry, np.where(numbers < 0, ~numbers, numbers), (numbers < 0).astype(np.uint8)
