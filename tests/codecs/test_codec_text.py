"""The line of text that is a pipeline: what it may say, and what is said about one that may not."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.codecs import BUILT_IN, MAX_TEXT, Pipeline, parse_pipeline, pipeline_from_wire
from fedmq.codecs.positions import Rice
from fedmq.codecs.quantize import Float32, Int8, Ternary
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
        ("topk(1)|int8|rice", Pipeline(sparsifier=TopK(fraction=1.0), quantizer=Int8(), positions=Rice())),
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
        ("gzip", "there is no codec 'gzip'; known are bitmap, float16, "),
        ("topk | ternary | rice", "topk needs its argument 'fraction'; it is written topk(fraction)"),
        ("topk(0.1, 2) | ternary | rice", "'topk(0.1, 2)' has 2 arguments; it is written topk(fraction)"),
        ("float32(1)", "'float32(1)' has 1 arguments; it is written float32"),
        ("topk(0) | ternary | rice", "fraction = 0.0 cannot be used: it is a share above 0 and at most 1"),
        ("topk(1.01) | ternary | rice", "fraction = 1.01 cannot be used"),
        ("topk(1e999) | ternary | rice", "fraction = inf cannot be used"),
        ("topk(nan) | ternary | rice", "'nan' in 'topk(nan)' is not a number"),
        ("topk(٣) | ternary | rice", "is not a number"),
        ("topk(0x1) | ternary | rice", "'0x1' in 'topk(0x1)' is not a number"),
        ("topk(0.1,) | ternary | rice", "has 2 arguments"),
        ("int8(0)", "block = 0 cannot be used: it is a number of values from 1"),
        ("int8(1.5)", "int8: block = 1.5 cannot be used: it is a whole number"),
        ("rice", "first comes a quantiser (float32, float16, int8(block), ternary"),
        (
            "topk(0.1)",
            "after topk(0.1) comes a quantiser (float32, float16, int8(block), ternary); the text ends",
        ),
        ("topk(0.1) | rice | int8", "after topk(0.1) comes a quantiser"),
        ("topk(0.1) | rice | int8", "not rice, a position coder"),
        ("topk(0.1) | topk(0.1) | int8 | rice", "not topk(0.1), a sparsifier"),
        ("topk(0.1) | int8", "after int8 comes a position coder (rice, bitmap, u32); the text ends there"),
        ("float32 | rice", "not rice, a position coder"),
        ("topk(0.1) | int8 | rice | rice", "after rice comes the end, not rice"),
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


def test_a_sparsifier_and_a_position_coder_come_together() -> None:
    """A pipeline built by hand is checked too."""
    with pytest.raises(CodecError, match="both a sparsifier and a position coder"):
        Pipeline(sparsifier=TopK(fraction=0.1), quantizer=Float32())
    with pytest.raises(CodecError, match="both a sparsifier and a position coder"):
        Pipeline(quantizer=Float32(), positions=Rice())


pieces = st.sampled_from(
    [*BUILT_IN, "topk(0.5)", "int8(3)", "|", " | ", "(", ")", ",", "0.1", "-1", "9" * 200]
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
