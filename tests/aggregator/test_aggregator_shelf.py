"""The frames of the published model, from one life of the aggregator to the next."""

import logging
from pathlib import Path

import numpy as np
import pytest
from fedmq.aggregator.publisher import PublishedFrame, Publisher, PublishSettings
from fedmq.aggregator.shelf import Shelf
from fedmq.aggregator.store import Store

from fedmq.errors import StoreError
from fedmq.layout import ParamLayout, Segment
from fedmq.types import GlobalModel, ModelVersion

LAYOUT = ParamLayout((Segment(name="w", shape=(30, 20)),))
SETTINGS = PublishSettings(
    keyframe_codec="int8",
    frame_codec="topk(0.1) | int8 | rice",
    delta_codec="topk(0.1) | int8 | rice",
    frame_versions=1,
)


def model(version: int) -> GlobalModel:
    """A walk."""
    steps = np.random.default_rng(3).standard_normal((version + 1, LAYOUT.size)).astype(np.float32)
    return GlobalModel(epoch=1, version=ModelVersion(version), layout=LAYOUT, vector=steps.sum(axis=0))


def test_a_new_life_goes_on_with_the_frames_of_the_one_before(tmp_path: Path) -> None:
    """It cuts no keyframe: its next head begins with the same frames."""
    store = Store(tmp_path / "store.db")
    first = Publisher(SETTINGS)
    shelf = Shelf(store, first, model(0))
    heads = []
    for source in (first, second := Publisher(SETTINGS)):  # what costs least is not the matter here
        source._stacking.place = lambda _version, frames, _size, _most: len(frames)  # type: ignore[method-assign]
    for version in range(4):
        heads.append(first.publish(model(version)).head)
        shelf.save()
    store.close()
    store = Store(tmp_path / "store.db")
    Shelf(store, second, model(3))
    head = second.publish(model(4)).head
    store.close()

    assert 5 == len(head.frames)
    assert heads[-1].frames == head.frames[: len(heads[-1].frames)]
    assert second.frames[: len(first.frames)] == first.frames


def test_a_stack_that_was_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    """Fewer frames than before, of which some are the same."""
    store = Store(tmp_path / "store.db")
    frames = [PublishedFrame(version=v, codec="float32", content=bytes(2400 + v)) for v in range(4)]
    store.save_frames(frames[:3], 0)
    store.save_frames((frames[0], frames[3]), 1)

    assert (frames[0], frames[3]) == store.frames()
    store.close()


def test_frames_that_cannot_be_decoded_cost_a_keyframe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A codec that is gone, or another model."""
    store = Store(tmp_path / "store.db")
    store.save_frames([PublishedFrame(version=0, codec="gone", content=b"?")], 0)
    publisher = Publisher(SETTINGS)
    with caplog.at_level(logging.WARNING):
        Shelf(store, publisher, model(1))
    store.close()

    assert () == publisher.frames
    assert "a keyframe follows" in caplog.text


def test_frames_of_a_newer_model_than_the_store_has_are_not_used(tmp_path: Path) -> None:
    """The store was restored from a backup, its frames were not."""
    store = Store(tmp_path / "store.db")
    first = Publisher(SETTINGS)
    shelf = Shelf(store, first, model(0))
    first.publish(model(3))
    shelf.save()
    second = Publisher(SETTINGS)
    Shelf(store, second, model(2))
    store.close()

    assert () == second.frames


def test_a_disk_that_refuses_the_frames_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written with the next one."""
    store = Store(tmp_path / "store.db")
    publisher = Publisher(SETTINGS)
    shelf = Shelf(store, publisher, model(0))
    publisher.publish(model(0))

    def refuse(*arguments: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_frames", refuse)
        shelf.save()
    refused = store.frames()
    publisher.publish(model(1))
    shelf.save()

    assert () == refused
    assert "were not kept" in caplog.text
    assert publisher.frames == store.frames()
    store.close()
