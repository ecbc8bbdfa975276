"""`fedmq codecs`: what it lists is what there is, and what it measures is so."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedmq.app.codec_trial import EXAMPLES, load_sample, synthetic, try_pipeline
from fedmq.app.commands.codecs import codecs
from fedmq.codecs import BUILT_IN, parse_pipeline
from fedmq.errors import CodecError, SettingError, StoreError
from fedmq.layout import ParamLayout, Segment
from fedmq.modelfile import save_model

LAYOUT = ParamLayout((Segment(name="w", shape=(20, 30)), Segment(name="b", shape=(20,))))


def vector(seed: int = 1) -> np.ndarray:
    """620 coordinates."""
    return np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)


def test_every_built_in_codec_has_an_example_that_uses_it() -> None:
    """A codec added to the table needs one."""
    used = {
        codec_id: {stage.id for stage in parse_pipeline(text).stages} for codec_id, text in EXAMPLES.items()
    }

    assert set(BUILT_IN) == set(EXAMPLES)
    assert all(codec_id in ids for codec_id, ids in used.items())


def test_a_trial_measures_bytes_and_error() -> None:
    """Against the pipeline itself."""
    sample = synthetic()
    pipeline = parse_pipeline("topk(0.02) | ternary | rice")
    payload = pipeline.encode(sample.vector, sample.geometry)
    decoded = pipeline.decode(payload, sample.geometry).to_dense()
    trial = try_pipeline(" topk(0.02)|ternary | rice", sample)

    assert len(payload) == trial.size
    assert str(pipeline) == trial.pipeline
    assert trial.bits == pytest.approx(8 * len(payload) / 101_770)
    assert trial.error == pytest.approx(
        float(((sample.vector - decoded) ** 2).sum() / (sample.vector**2).sum()), rel=1e-4
    )
    assert 0 == try_pipeline("float32", sample).error


def test_a_model_file_and_an_array_are_taken(tmp_path: Path) -> None:
    """With the geometry that they have."""
    save_model(tmp_path / "model.safetensors", LAYOUT, vector())
    np.save(tmp_path / "vector.npy", vector().reshape(31, 20))
    model, array = load_sample(tmp_path / "model.safetensors"), load_sample(tmp_path / "vector.npy")

    assert LAYOUT.geometry == model.geometry
    assert vector().tolist() == model.vector.tolist() == array.vector.tolist()
    assert ((31, 20),) == array.geometry.shapes


def test_what_cannot_be_tried_says_why(tmp_path: Path) -> None:
    """Another dtype, no file, no store."""
    np.save(tmp_path / "doubles.npy", np.zeros(3))
    with pytest.raises(SettingError, match="float32 is wanted"):
        load_sample(tmp_path / "doubles.npy")
    with pytest.raises(SettingError, match="cannot be read"):
        load_sample(tmp_path / "none.npy")
    with pytest.raises(StoreError, match="there is no such"):
        load_sample(tmp_path / "none.db")


def test_the_command_lists_all_and_tries_what_it_is_given(tmp_path: Path) -> None:
    """As a person would call it."""
    save_model(tmp_path / "model.safetensors", LAYOUT, vector())
    listed = CliRunner().invoke(codecs, [], catch_exceptions=False).output
    tried = (
        CliRunner()
        .invoke(codecs, ["int8", "topk(0.1)|ternary|rice", "--on", str(tmp_path / "model.safetensors")])
        .output
    )

    assert all(f"  {codec_id}" in listed for codec_id in BUILT_IN)
    assert "on 620 parameters" in tried
    assert "topk(0.1) | ternary | rice" in tried
    with pytest.raises(CodecError, match="there is no codec 'zip'"):
        CliRunner().invoke(codecs, ["zip"], catch_exceptions=False)
