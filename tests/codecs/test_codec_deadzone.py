"""The quantiser with a wide zero: how much energy it keeps, how coarse its step is, and what it refuses."""

import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmq.codecs import Geometry, Symbols, parse_pipeline
from fedmq.codecs.activity import entropy
from fedmq.codecs.deadzone import Deadzone
from fedmq.errors import CodecError, WireError


def laplacian(count: int = 50_000) -> np.ndarray:
    """Values as peaked as those of a difference of models."""
    return np.random.default_rng(1).laplace(size=count).astype(np.float32)


def kept_energy(values: np.ndarray, decoded: np.ndarray) -> float:
    """As a share of the squared norm."""
    x = values.astype(np.float64)
    return 1 - float(((x - decoded) ** 2).sum() / (x**2).sum())


def decoded_of(codec: Deadzone, values: np.ndarray) -> np.ndarray:
    """What a receiver has."""
    return codec.dequantize(codec.quantize(values), len(values))


def entropy_at(codec: Deadzone, values: np.ndarray) -> float:
    """Bits per code."""
    return entropy(np.bincount(codec.quantize(values).codes)) / len(values)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32)),
    energy=st.floats(0.05, 0.9999),
    zone=st.sampled_from([0.0, 0.5, 0.75, 0.99]),
)
def test_the_energy_is_kept_and_no_value_is_further_off_than_the_zone(
    values: np.ndarray, energy: float, zone: float
) -> None:
    """Whatever the values are."""
    codec = Deadzone(energy=energy, zone=zone)
    symbols = codec.quantize(values)
    decoded = codec.dequantize(symbols, len(values))
    step = float(symbols.parameters[0])

    if step:
        assert kept_energy(values, decoded) >= energy - 1e-6
    reach = zone or 0.5 + 0.33 * (1 - energy) ** 0.4
    assert (np.abs(values - decoded.astype(np.float64)) <= reach * step * (1 + 1e-3) + 4e-34).all()
    assert (decoded * values >= 0).all()
    assert (np.abs(decoded) <= np.abs(values) + 0.5 * step * (1 + 1e-3)).all()


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 0.9999])
def test_the_step_is_about_the_largest_that_keeps_the_energy(energy: float) -> None:
    """One percent more is too much."""
    values, codec = laplacian(), Deadzone(energy=energy)
    symbols = codec.quantize(values)
    coarser = Symbols(parameters=symbols.parameters * np.float32(1.01), codes=symbols.codes)
    reach = 0.5 + 0.33 * (1 - energy) ** 0.4
    steps = np.floor(np.abs(values) / coarser.parameters[0] + (1 - reach))

    assert kept_energy(values, np.sign(values) * steps * coarser.parameters[0]) < energy
    assert kept_energy(values, codec.dequantize(symbols, len(values))) >= energy


@pytest.mark.parametrize(("energy", "saved"), [(0.8, 0.09), (0.9, 0.04), (0.95, 0.02), (0.99, 0.002)])
def test_the_default_zone_takes_fewer_bits_than_rounding_and_about_the_fewest(
    energy: float, saved: float
) -> None:
    """At equal energy; of all zones in steps of a twentieth."""
    values = laplacian()
    default = entropy_at(Deadzone(energy=energy), values)
    all_zones = [entropy_at(Deadzone(energy=energy, zone=zone), values) for zone in np.arange(0.5, 0.8, 0.05)]

    assert default <= (1 - saved) * all_zones[0]
    assert default <= 1.005 * min(all_zones)


def test_values_that_are_too_small_are_sent_as_zeros() -> None:
    """So no subnormal number enters the arithmetic; and nothing is as it was."""
    for values in (np.full(9, 3e-34, np.float32), np.zeros(9, np.float32)):
        symbols = Deadzone(energy=0.9).quantize(values)
        assert [0] == symbols.parameters.tolist()
        assert [0] * 9 == decoded_of(Deadzone(energy=0.9), values).tolist()
    nothing = Deadzone(energy=0.9).quantize(np.zeros(0, np.float32))
    assert (0, 0) == (len(nothing.parameters), len(nothing.codes))


def test_the_largest_floats_do_not_overflow() -> None:
    """The largest value would round up beyond them."""
    largest = np.finfo(np.float32).max
    for energy in (0.1, 0.5, 0.9, 0.9999999):
        values = np.array([largest, -largest, largest / 3, 1, 0], np.float32)
        decoded = decoded_of(Deadzone(energy=energy), values)
        assert np.isfinite(decoded).all()
        assert kept_energy(values, decoded) >= energy - 1e-6


def test_an_energy_beyond_16_bits_takes_all_the_steps_there_are() -> None:
    """And keeps what can be kept."""
    values = laplacian(1000)
    symbols = Deadzone(energy=1 - 1e-12).quantize(values)

    assert 32_766 == (symbols.codes.max() + 1) // 2
    assert kept_energy(values, Deadzone(energy=0.5).dequantize(symbols, 1000)) > 1 - 1e-8


def test_a_difference_is_written_in_less_than_its_entropy() -> None:
    """With `range` behind it, when rows and columns differ; and far below its width without."""
    rng = np.random.default_rng(2)
    scale = np.exp(rng.normal(0, 1.2, (120, 1)) + rng.normal(0, 1.2, 300))
    values = (rng.laplace(size=(120, 300)) * scale).astype(np.float32).reshape(-1)
    codes = Deadzone(energy=0.95).quantize(values).codes
    payload = parse_pipeline("deadzone(0.95) | range").encode(values, Geometry(((120, 300),)))

    assert 8 * len(payload) < 0.85 * entropy(np.bincount(codes))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("deadzone", "deadzone needs its argument 'energy'; it is written deadzone(energy, zone)"),
        ("deadzone(0)", "energy = 0.0 cannot be used: it is a share between 0 and 1, such as deadzone(0.95)"),
        ("deadzone(1)", "energy = 1.0 cannot be used"),
        ("deadzone(0.9, 0.4)", "zone = 0.4 cannot be used: it is from 0.5"),
        ("deadzone(0.9, 1)", "zone = 1.0 cannot be used"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(text: str, complaint: str) -> None:
    """The message says what would do."""
    with pytest.raises(CodecError, match=re.escape(complaint)):
        parse_pipeline(text)


@pytest.mark.parametrize(
    ("step", "code", "reason"),
    [
        (float("inf"), 1, "a step of inf cannot be used"),
        (float("nan"), 0, "a step of nan cannot be used"),
        (-1.0, 1, "a step of -1.0 cannot be used"),
        (1e-39, 1, "e-39 cannot be used"),
        (0.0, 1, "a step of 0.0 cannot be used"),
        (3e38, 3, "e+38 are not finite"),
        (3e38, 4, "2 steps of 3.0"),
    ],
)
def test_a_step_that_no_encoder_writes_is_refused(step: float, code: int, reason: str) -> None:
    """And one step of 3e38 is not."""
    pipeline = parse_pipeline("deadzone(0.9)")

    with pytest.raises(WireError, match=re.escape(reason)):
        pipeline.decode(struct.pack("<fHH", step, code, 0), 2)
    assert [np.float32(-3e38), 0] == pipeline.decode(struct.pack("<fHH", 3e38, 1, 0), 2).values.tolist()
