"""What a fuzzer gives to the decoders: any bytes, read as a choice of decoder and a message for it (law 7).

No fuzzer in here, so that the suite can run it, too: `fuzz_decoding` hands this to atheris.
"""

import numpy as np

from fedmq.codecs import Geometry, parse_pipeline
from fedmq.errors import WireError
from fedmq.wire import READERS

#: Every codec is in one of them; `test_fuzz_decoding` sees to that.
PIPELINES = [
    parse_pipeline(text)
    for text in (
        "float32",
        "float16",
        "int8(7)",
        "int8 | range",
        "qsgd(2)",
        "qsgd(4) | range",
        "sign(16)",
        "eden(1)",
        "eden(3) | range",
        "deadzone(0.9)",
        "deadzone(0.9) | range",
        "lowrank(1) | float16",
        "topk(0.3) | ternary | rice",
        "topk(0.3) | ternary(5) | rows | range",
        "topk_each(0.3) | int8 | bitmap",
        "threshold(0.5) | float16 | u32",
        "budget(40) | ternary | rows",
        "randomk(0.2) | qsgd(8)",
    )
]
GEOMETRIES = [Geometry.flat(0), Geometry.flat(1), Geometry.flat(61), Geometry.of([(6, 9), (6,), (2, 3, 4)])]
KINDS = list(READERS)


def decode(data: bytes) -> bool:
    """Decode a message.

    Args:
        data: the first byte chooses a pipeline or a kind of envelope, the second a geometry; the rest is the message.

    Returns:
        Whether it was one. Anything but `WireError` is a defect, and so is a vector that is not sound.
    """
    if len(data) < 2:
        return False
    choice, geometry, message = data[0] % (len(PIPELINES) + len(KINDS)), data[1], data[2:]
    try:
        if choice >= len(PIPELINES):
            READERS[KINDS[choice - len(PIPELINES)]](message)
            return True
        shape = GEOMETRIES[geometry % len(GEOMETRIES)]
        decoded = PIPELINES[choice].decode(message, shape)
    except WireError:
        return False
    dense = decoded.to_dense()
    assert shape.length == dense.shape[0]
    assert np.isfinite(dense).all()
    return True
