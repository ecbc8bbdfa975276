"""Trust: is an update what an honest client could have learned? Checks of content against a reference. Pure.

    agreement(a, β, n)      refuse if cos(Δ, c) < a, c the consensus of earlier updates                  `consensus`
    zeno(ρ, ε, γ)           refuse if γ ⟨v, u⟩ − ρ ‖u‖² < −γ ε ‖v‖²      Zeno++, Xie et al., ICML 2020, arXiv 1903.07020
    aflguard(λ)             refuse if ‖u − v‖ > λ ‖v‖           AFLGuard, Fang et al., ACSAC 2022, arXiv 2212.06325

v is the server's own update: what the plan's trainer makes of the model with data that the operator trusts. The papers
compare gradients; here both sides are what an epoch of local training came to. That changes four things:

* v is the running mean of the server's last updates (`blend`). An update with error feedback also says what earlier
  ones could not, and a trusted set is small: beside one update of the server's, honest clients soon look like chance.
* Only the coordinates S that an update has are compared: Δ and v_S. A sparse update is no worse for being sparse.
* Lengths: with error feedback an update also carries what earlier ones held back, a trusted set is larger or smaller
  than a device's, a stretch of training longer. So u is Δ at the length of v_S (zeno, as in its paper), or at most at
  that length (aflguard). How long an update may be is for `fold.clip_quantile` to say.
* ε counts in units of ‖v_S‖², so that it means the same at the beginning and at the end of training.

With this zeno asks for cos(Δ, v_S) ≥ ρ/γ − ε, and aflguard of an update that is not shorter than v_S for
cos ≥ 1 − λ²/2.

`agreement` needs no data. It admits everything until n votes have been heard.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedmq.encoding import DecodedVector
from fedmq.errors import SettingError
from fedmq.settings import setting
from fedmq.types import ParamVector, Refusal, Rejection

from .consensus import Consensus, cosine
from .formula import Forms, Formula, Parameter, parse_formula

FORMS: Final[Forms] = {
    "none": (),
    "agreement": (
        Parameter(name="a", low=-1.0, high=1.0, default=-0.1),
        Parameter(name="beta", low=0.5, high=0.9999, default=0.99),
        Parameter(name="n", low=1.0, whole=True, default=20.0),
    ),
    "zeno": (
        Parameter(name="rho", default=0.005),
        Parameter(name="epsilon", default=0.1),
        Parameter(name="gamma", low=1e-9, default=0.1),
    ),
    "aflguard": (Parameter(name="lambda", default=1.5),),
}
#: What the running mean of the server's updates keeps: about the last five count.
_MEMORY: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSettings:
    """Which updates are taken for honest."""

    rule: str = setting(
        "none",
        help="check of content: none, agreement(a, beta, n), zeno(rho, epsilon, gamma), aflguard(lambda)",
    )
    data: Path | None = setting(
        None,
        help="file of trusted examples for zeno and aflguard, as the plan's trainer reads it on a device",
    )
    every: int = setting(5, help="versions between two updates of the server's own", low=1)


@dataclass(frozen=True, slots=True)
class Trust(Formula):
    """One of the checks with its numbers."""

    @property
    def needs_data(self) -> bool:
        """Whether it compares with the server's own update."""
        return self.form != "agreement"

    @property
    def memory(self) -> float:
        """The consensus's β; 0 where none is needed."""
        return self.parameters[1] if self.form == "agreement" else 0.0


def make_trust(settings: TrustSettings) -> Trust | None:
    """The check that the settings name; None for none.

    Raises:
        SettingError: there is no such check, or its data is not named.
    """
    form, parameters = parse_formula("trust.rule", settings.rule, FORMS)
    if form == "none":
        return None
    trust = Trust(form, parameters)
    if trust.needs_data and settings.data is None:
        raise SettingError("trust.data", None, f"{form} compares with trusted examples: name their file")
    return trust


def check_agreement(trust: Trust, delta: DecodedVector, consensus: Consensus) -> Refusal | None:
    """Why an update is refused that contradicts the others; None when it does not."""
    least, _, fewest = trust.parameters
    if consensus.votes < fewest:
        return None
    found = consensus.agreement(delta)
    return None if found >= least else _refused(f"its cosine with the others' updates is {found:.2f}", least)


def check_reference(trust: Trust, delta: DecodedVector, reference: ParamVector) -> Refusal | None:
    """Why an update is refused that contradicts the server's own; None when it does not.

    Args:
        trust: zeno or aflguard.
        delta: the update.
        reference: v, float32, shape (layout.size,).
    """
    trainable = delta.trainable
    chosen = reference[: trainable.length] if trainable.indices is None else reference[trainable.indices]
    own = float(np.linalg.norm(chosen.astype(np.float64)))
    length = trainable.norm()
    if not own or not length:
        return None
    found = cosine(delta, reference)
    if trust.form == "zeno":
        rho, epsilon, gamma = trust.parameters
        least = rho / gamma - epsilon
        return None if found >= least else _refused(f"its cosine with the server's own is {found:.2f}", least)
    share, radius = min(length / own, 1.0), trust.parameters[0]
    distance = math.sqrt(max(share * share + 1 - 2 * share * found, 0.0))
    if distance <= radius:
        return None
    detail = f"it is {distance:.2f} lengths from the server's own update, at most {radius:g} are allowed"
    return Refusal(reason=Rejection.SUSPICIOUS, detail=detail)


def blend(reference: ParamVector, fresh: ParamVector) -> ParamVector:
    """The server's update after another one: a running mean of directions, at the newest one's length.

    Args:
        reference: v up to now, float32, shape (size,).
        fresh: what was learned last, of the same shape.
    """
    old, new = (float(np.linalg.norm(vector.astype(np.float64))) for vector in (reference, fresh))
    if not old or not new:
        return fresh if new else reference
    mean = reference * np.float32(_MEMORY / old) + fresh * np.float32((1 - _MEMORY) / new)
    size = float(np.linalg.norm(mean.astype(np.float64)))
    return mean * np.float32(new / size) if size else fresh


def _refused(what: str, least: float) -> Refusal:
    return Refusal(reason=Rejection.SUSPICIOUS, detail=f"{what}, at least {least:.2f} is allowed")
