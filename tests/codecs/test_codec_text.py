"""The line of text that is a pipeline: what it may say, and what is said about one that may not."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import BUILT_IN, MAX_TEXT, Pipeline, parse_pipeline, pipeline_from_wire
from fedmq.codecs.lowrank import LowRank
from fedmq.codecs.positions import Rice
from fedmq.codecs.quantize import Float16, Float32, Int8
from fedmq.codecs.randomk import RandomK
from fedmq.codecs.rotate import Eden
from fedmq.codecs.sign import Sign, Ternary
from fedmq.codecs.sparse import TopK
from fedmq.errors import CodecError, WireError

TERNARY = Pipeline(sparsifier=TopK(fraction=0.01), quantizer=Ternary(), positions=Rice())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("topk(0.01) | ternary | rice", TERNARY),
        ("topk(0.01)|ternary|rice", TERNARY),
        ("  topk( 1e-2 ) |ternary()|   rice ", TERNARY),
        ("float32", Pipeline(quantizer=Float32())),
        ("int8", Pipeline(quantizer=Int8())),
        ("int8(1024)", Pipeline(quantizer=Int8())),
        ("int8(64)", Pipeline(quantizer=Int8(block=64))),
        (
            "topk(0.005, 512)|ternary|rice",
            Pipeline(sparsifier=TopK(fraction=0.005, least=512), quantizer=Ternary(), positions=Rice()),
        ),
        ("topk(1)|int8|rice", Pipeline(sparsifier=TopK(fraction=1.0), quantizer=Int8(), positions=Rice())),
        (
            "topk(0.01) | ternary(64) | rice",
            Pipeline(sparsifier=TopK(fraction=0.01), quantizer=Ternary(block=64), positions=Rice()),
        ),
        ("sign", Pipeline(quantizer=Sign(block=1024))),
        (
            "randomk(0.1) | eden(2, 1)",
            Pipeline(sparsifier=RandomK(fraction=0.1), quantizer=Eden(bits=2, unbiased=1)),
        ),
        ("lowrank(4) | float16", Pipeline(transform=LowRank(rank=4), quantizer=Float16())),
    ],
)
def test_text_parses_to_a_pipeline(text: str, expected: Pipeline) -> None:
    """Blanks and the spelling of numbers do not matter."""
    assert expected == parse_pipeline(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("topk(1e-2)|ternary|rice", "topk(0.01) | ternary | rice"),
        ("topk(0.00001)|float32|u32", "topk(1e-05) | float32 | u32"),
        ("int8(1024)", "int8"),
        ("int8(064)", "int8(64)"),
        ("topk(1e-2)|ternary(2147483647)|rice", "topk(0.01) | ternary | rice"),
        ("threshold(1, 1e-1)|ternary|rice", "threshold(1.0) | ternary | rice"),
        ("qsgd(4,512)", "qsgd(4)"),
        ("eden(1, 0)", "eden(1)"),
    ],
)
def test_the_text_of_a_pipeline_is_canonical(text: str, canonical: str) -> None:
    """One pipeline has one text: arguments at their default are left out."""
    assert canonical == str(parse_pipeline(text))


def test_the_repr_of_a_pipeline_evaluates_back() -> None:
    """It is made of constructor calls."""
    names = {"Pipeline": Pipeline, "TopK": TopK, "Ternary": Ternary, "Rice": Rice}

    assert eval(repr(TERNARY), names) == TERNARY


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not a codec"),
        ("topk(0.01) | | rice", "'' is not a codec"),
        ("Float32", "'Float32' is not a codec"),
        ("float32\n", "is not a codec"),
        ("float32; import os", "is not a codec"),
        ("topk(0.01", "'topk(0.01' is not a codec"),
        ("gzip", "there is no codec 'gzip'; known are "),
        ("topk | ternary | rice", "topk needs its argument 'fraction'; it is written topk(fraction, least)"),
        (
            "topk(0.1, 2, 3) | ternary | rice",
            "'topk(0.1, 2, 3)' has 3 arguments; it is written topk(fraction, least)",
        ),
        ("float32(1)", "'float32(1)' has 1 arguments; it is written float32"),
        ("topk(0) | ternary | rice", "fraction = 0.0 cannot be used: it is a share above 0 and at most 1"),
        ("topk(1.01) | ternary | rice", "fraction = 1.01 cannot be used"),
        (
            "topk(0.1, 0) | ternary | rice",
            "topk: least = 0 cannot be used: it is a number of coordinates from 1",
        ),
        ("topk(1e999) | ternary | rice", "fraction = inf cannot be used"),
        ("topk(nan) | ternary | rice", "'nan' in 'topk(nan)' is not a number"),
        ("topk(٣) | ternary | rice", "is not a number"),
        ("topk(0x1) | ternary | rice", "'0x1' in 'topk(0x1)' is not a number"),
        ("topk(0.1, 2,) | ternary | rice", "has 3 arguments"),
        ("int8(0)", "block = 0 cannot be used: it is a number of values from 1"),
        ("int8(1.5)", "int8: block = 1.5 cannot be used: it is a whole number"),
        ("rice", "first comes a quantiser (float32, float16, int8, ternary, "),
        ("rice", ") or a transform (lowrank"),
        ("rice", ") or a sparsifier (topk, "),
        ("rice", ") or a seeded sparsifier (randomk), not rice, a position coder"),
        ("topk(0.1)", "after topk(0.1) comes a quantiser (float32, float16, int8, ternary, "),
        ("topk(0.1)", "); the text ends there"),
        ("topk(0.1) | rice | int8", "after topk(0.1) comes a quantiser ("),
        ("topk(0.1) | rice | int8", "), not rice, a position coder"),
        ("topk(0.1) | topk(0.1) | int8 | rice", "not topk(0.1), a sparsifier"),
        ("topk(0.1) | int8", "after int8 comes a position coder ("),
        ("topk(0.1) | lowrank(1) | int8", "not lowrank(1), a transform"),
        ("lowrank(1) | topk(0.1) | int8 | rice", "after lowrank(1) comes a quantiser ("),
        ("float32 | rice", "after float32 comes an entropy coder"),
        ("float32 | rice", " or nothing, not rice, a position coder"),
        ("randomk(0.1) | float32 | rice", " or nothing, not rice, a position coder"),
        ("topk(0.1) | int8 | rice | rice", "after rice comes an entropy coder"),
        ("qsgd(3)", "qsgd: bits = 3 cannot be used: it is 2, 4 or 8"),
        ("eden(5)", "eden: bits = 5 cannot be used: it is from 1 to 4"),
        ("eden(2, 2)", "eden: unbiased = 2 cannot be used: it is 0 for the least error, 1 for"),
        ("lowrank(0) | int8", "lowrank: rank = 0 cannot be used: it is a whole number from 1 to 64"),
        ("threshold(0) | int8 | rice", "threshold: value = 0.0 cannot be used: it is a magnitude above 0"),
        ("threshold(1e39) | int8 | rice", "threshold: value = 1e+39 cannot be used"),
        ("threshold(1, 0) | int8 | rice", "threshold: share = 0.0 cannot be used: it is a share above 0"),
        ("budget(31) | int8 | rice", "budget: size = 31 cannot be used: it is a number of bytes from 32 to"),
        ("budget(32, 0) | int8 | rice", "budget: bits = 0.0 cannot be used: it is the width of a value"),
        ("randomk(2) | int8", "randomk: fraction = 2.0 cannot be used: it is a share above 0 and at most 1"),
        ("sign(0)", "sign: block = 0 cannot be used"),
        ("ternary", "ternary has no code for zero, so it cannot quantise a whole vector"),
        (" " * MAX_TEXT + "float32", f"at most {MAX_TEXT} characters, not {MAX_TEXT + 7}"),
    ],
)
def test_text_that_makes_no_sense_is_refused_with_its_reason(text: str, complaint: str) -> None:
    """The message names the piece at fault and what is allowed; from the wire, it is the peer's fault."""
    with pytest.raises(CodecError, match=re.escape(complaint)):
        parse_pipeline(text)
    with pytest.raises(WireError, match=re.escape(complaint)):
        pipeline_from_wire(text)


@pytest.mark.parametrize(
    ("codecs", "complaint"),
    [
        ({"sparsifier": TopK(fraction=0.1)}, "after float32 comes a position coder (rice, "),
        ({"positions": Rice()}, "not rice, a position coder"),
        ({"sparsifier": RandomK(fraction=0.1), "positions": Rice()}, "not rice, a position coder"),
        ({"transform": LowRank(rank=1), "positions": Rice()}, "not rice, a position coder"),
        (
            {"transform": LowRank(rank=1), "sparsifier": TopK(fraction=0.1), "positions": Rice()},
            "after lowrank(1) comes a quantiser (float32, ",
        ),
    ],
)
def test_codecs_that_do_not_fit_together_are_refused(codecs: dict[str, Any], complaint: str) -> None:
    """A pipeline built by hand is checked like a line of text."""
    with pytest.raises(CodecError, match=re.escape(complaint)):
        Pipeline(quantizer=Float32(), **codecs)


def test_every_message_about_the_order_fits_on_a_screen() -> None:
    """However many codecs there are: ids without arguments."""
    for text in ("rice", "topk(0.1) | rice", "float32 | float32", "topk(0.1) | float32 | rice | rice"):
        with pytest.raises(CodecError) as caught:
            parse_pipeline(text)
        assert len(str(caught.value)) <= 400


pieces = st.sampled_from(
    [
        *BUILT_IN,
        "topk(0.5)",
        "int8(3)",
        "eden(2)",
        "lowrank(1)",
        "randomk(0.5)",
        "|",
        " | ",
        "(",
        ")",
        ",",
        "0.1",
        "-1",
        "9" * 200,
    ]
)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=300) | st.lists(pieces, max_size=12).map("".join))
def test_any_text_from_the_wire_is_a_pipeline_or_a_wire_error(text: str) -> None:
    """Law 7 for the text, and whatever parses has a canonical form."""
    try:
        pipeline = pipeline_from_wire(text)
    except WireError:
        return

    assert pipeline == parse_pipeline(str(pipeline))
