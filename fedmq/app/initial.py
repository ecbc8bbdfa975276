"""The model that a federation starts from, made by any trainer."""

from pathlib import Path

from fedmq.edge_agent.trainer import find_factory
from fedmq.layout import ParamLayout
from fedmq.modelfile import save_model
from fedmq.settings import parse_table


def write_initial(out: Path, trainer: str, settings: str, local: str) -> ParamLayout:
    """Write a trainer's initial model.

    Args:
        out: the safetensors file.
        trainer: see `find_factory`.
        settings: what the plan will tell the trainer, as name=value,…
        local: what a device would tell it, likewise.

    Raises:
        SettingError: there is no such trainer, or it refuses its settings.
        ModelFileError: the file cannot be written.
    """
    made = find_factory(trainer)(dict(parse_table(settings)), **dict(parse_table(local)))
    save_model(out, made.layout, made.initial())
    return made.layout
