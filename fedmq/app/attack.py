"""Attackers for the simulator: a trainer that learns as asked, and hands in something else.

    sign_flip(c)    −c Δ, c times as long and the wrong way
    noise(c)        a normal direction of its own, c times as long as Δ
    label_flip      what is learned from data on which class y is called (classes − 1 − y)
    same_value(c)   one direction that all attackers agree on, c times as long as Δ

Δ = local − base is what honest training would have come to. `same_value` is Li et al.'s attack of that name (RSA, AAAI
2019, arXiv 1811.03761, §5) with signs: each coordinate has the same magnitude, its sign is drawn once for all
attackers, so that no sparsifier prefers any. Everything behind the trainer is the honest agent's: error feedback,
codec, outbox, messages. So what arrives is what a device with a manipulated trainer would send; an attacker that also
writes its own messages can do more (skip the codec, claim more examples).
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.aggregator.formula import Forms, Formula, Parameter, parse_formula
from fedmq.edge_agent.trainer import Task, Trainer, TrainResult, installed_factory
from fedmq.errors import SettingError
from fedmq.layout import ParamLayout
from fedmq.plan import Scalar
from fedmq.types import ParamVector

_SCALE: Final = Parameter(name="scale", high=1e6, default=1.0)
FORMS: Final[Forms] = {
    "none": (),
    "sign_flip": (_SCALE,),
    "noise": (_SCALE,),
    "label_flip": (),
    "same_value": (_SCALE,),
}
#: Of the signs that attackers agree on.
_CONSPIRACY: Final = 0xBAD
#: Where a device's settings name an attacker.
FACTORY: Final = f"{__name__}:attacker"


@dataclass(frozen=True, slots=True)
class Attack(Formula):
    """One of the attacks with its number."""


def parse_attack(text: str) -> Attack | None:
    """Read `none`, `sign_flip(10)`, `noise(1)`, `label_flip` or `same_value(1)`; the number is 1 if left out.

    Raises:
        SettingError: the text is none of these, or the number is not allowed.
    """
    form, parameters = parse_formula("attack", text, FORMS)
    return None if form == "none" else Attack(form, parameters)


class Attacker:
    """A trainer that turns what another one learned into an attack.

    Args:
        honest: learns; with `label_flip` from data that is already false.
        attack: what to make of it.
    """

    def __init__(self, honest: Trainer, attack: Attack) -> None:
        self._honest, self._attack = honest, attack

    @property
    def layout(self) -> ParamLayout:
        """The honest trainer's."""
        return self._honest.layout

    def initial(self) -> ParamVector:
        """The honest trainer's."""
        return self._honest.initial()

    def evaluate(self, vector: ParamVector) -> Mapping[str, float]:
        """The honest trainer's."""
        return self._honest.evaluate(vector)

    def train(self, base: ParamVector, task: Task, should_stop: Callable[[], bool]) -> TrainResult:
        """Train, then attack; the number of examples is left as it is."""
        result = self._honest.train(base, task, should_stop)
        false = forge(self._attack, result.vector - base, task.seed)
        return replace(result, vector=base + false)


def forge(attack: Attack, delta: ParamVector, seed: int) -> ParamVector:
    """What is handed in in the place of a delta, float32, of the same shape.

    Args:
        attack: how.
        delta: what honest training came to; with `label_flip` the delta is false already.
        seed: of this attacker's noise.
    """
    if attack.form == "label_flip":
        return delta
    scale = np.float32(attack.parameters[0])
    if attack.form == "sign_flip":
        return -scale * delta
    if attack.form == "noise":
        direction = np.random.default_rng(seed).standard_normal(delta.size, np.float32)
    else:
        signs = np.random.default_rng(_CONSPIRACY).integers(0, 2, delta.size, np.int8)
        direction = (2 * signs - 1).astype(np.float32)
    length = np.linalg.norm(direction.astype(np.float64))
    size = np.linalg.norm(delta.astype(np.float64))
    return direction * (scale * np.float32(size / length if length else 0.0))


def attacker(settings: Mapping[str, Scalar], *, attack: str, trainer: str, data: str) -> Attacker:
    """The factory that an attacking device names in its own settings.

    Args:
        settings: the plan's.
        attack: see `parse_attack`.
        trainer: the honest one, by the name that it is installed under.
        data: the device's file.

    Raises:
        SettingError: there is no such attack or trainer, or the data cannot be used.
    """
    parsed = parse_attack(attack)
    if parsed is None:
        raise SettingError("attack", attack, "an attacker needs an attack")
    factory = installed_factory(trainer)
    if parsed.form != "label_flip":
        return Attacker(factory(dict(settings), data=data), parsed)
    with tempfile.TemporaryDirectory() as folder:
        false = Path(folder) / "false.npz"
        _flip_labels(Path(data), false, int(settings["classes"]) if "classes" in settings else None)
        return Attacker(factory(dict(settings), data=str(false)), parsed)


def _flip_labels(source: Path, target: Path, classes: int | None) -> None:
    """Write the data again with false labels to learn from; the test data stays true."""
    with np.load(source, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    labels = arrays["train_labels"].astype(np.int64)
    arrays["train_labels"] = (labels.max() if classes is None else classes - 1) - labels
    np.savez(target, **arrays)
