"""The plan that the aggregator makes of its settings."""

from fedmq.aggregator.dials import make_rule
from fedmq.aggregator.strategy import FoldSettings
from fedmq.aggregator.tasks import TaskSettings, make_plan

from fedmq import wire
from fedmq.layout import ParamLayout, Segment


def test_a_setting_given_in_python_as_a_whole_number_makes_a_plan_that_clients_read() -> None:
    """`resend_seconds=600` and `clip_norm=1` are numbers to a person; the wire knows integers from floats."""
    plan = make_plan(
        TaskSettings(resend_seconds=600, clip_norm=1),
        make_rule(FoldSettings()),
        epoch=1,
        layout=ParamLayout((Segment(name="w", shape=(4,)),)),
        chunk_bytes=4096,
    )
    read = wire.unpack_plan(wire.pack_plan(plan))

    assert (600.0, 1.0) == (read.resend_seconds, read.clip_norm)
