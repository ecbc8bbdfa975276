"""Codecs of other packages: found by entry point, refused when two claim one id."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmq.codecs import BUILT_IN, Pipeline, find_codec, parse_pipeline, pipeline_from_wire, registry
from fedmq.errors import CodecError
from fedmq.testing import codec_contract as contract

HALF = '''
"""A codec as another package would write it."""
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from fedmq.codecs import Sparsifier

@dataclass(frozen=True, slots=True, kw_only=True)
class EveryOther(Sparsifier):
    id: ClassVar[str] = "every_other"
    start: int = 0
    def select(self, vector, geometry):
        return np.arange(self.start, vector.shape[0], 2, dtype=np.int32)
    def max_count(self, geometry):
        return (geometry.length + 1) // 2

NOT_A_CODEC = 3
'''

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a real distribution with codec entry points on the path."""

    def put(name: str, entries: str) -> None:
        module = f"fedmq_test_codecs_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(HALF)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fedmq.codecs]\n{entries.replace('MODULE', module)}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    parse_pipeline.cache_clear()
    yield put
    registry._installed.cache_clear()
    parse_pipeline.cache_clear()


def test_an_installed_codec_works_like_a_built_in_one(install: Install) -> None:
    """By name in a pipeline, through the whole contract."""
    install("another", "every_other = MODULE:EveryOther")
    pipeline = parse_pipeline("every_other(1) | float32 | rice")
    vector = np.arange(9, dtype=np.float32)

    contract.check_codec(pipeline.stages[0])
    contract.check_text(pipeline)
    contract.check_round_trip(pipeline, vector, np.zeros_like)
    contract.check_conservation(pipeline, vector)
    contract.check_exact_length(pipeline, vector)
    assert pipeline.decode(pipeline.encode(vector), 9).values.tolist() == [1, 3, 5, 7]


def test_an_installed_codec_is_named_among_the_known_ones(install: Install) -> None:
    """The message helps whoever misspelt it."""
    install("another", "every_other = MODULE:EveryOther")
    with pytest.raises(CodecError, match=r"known are .*every_other, float16"):
        find_codec("every_second")


def test_two_packages_that_claim_one_id_are_refused(install: Install) -> None:
    """No last one wins."""
    install("one", "every_other = MODULE:EveryOther")
    install("two", "every_other = MODULE:EveryOther")
    with pytest.raises(CodecError, match="'every_other' is offered twice"):
        find_codec("every_other")


def test_a_package_that_claims_a_built_in_id_is_refused(install: Install) -> None:
    """Nor can a built-in codec be replaced; it goes on working."""
    install("another", "topk = MODULE:EveryOther")
    with pytest.raises(CodecError, match=r"'topk' is offered twice, by .* and by fedmq itself"):
        find_codec("every_other")

    assert BUILT_IN["topk"] is find_codec("topk")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("gone = MODULE:Gone", "'gone' cannot be loaded"),
        ("gone = fedmq_test_no_such_module:Gone", "'gone' cannot be loaded"),
        ("gone = MODULE:NOT_A_CODEC", "is not a codec class with that id"),
        ("gone = MODULE:EveryOther", "is not a codec class with that id"),
    ],
)
def test_an_entry_point_that_is_no_codec_is_refused(install: Install, entry: str, complaint: str) -> None:
    """Each with its reason; the rest of fedmq is not affected."""
    install("another", entry)
    with pytest.raises(CodecError, match=complaint):
        find_codec("gone")

    assert isinstance(pipeline_from_wire("float32"), Pipeline)
