"""The dials of folding as the operator sets them, and the rule that they come to.

Most are open: the strategy's name fills them. Dials that contradict each other are refused here, before anything is
folded. `docs/folding.md` tells what each rule computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedmq.errors import SettingError
from fedmq.settings import setting

from .compensation import parse_compensation
from .optimizer import parse_optimizer
from .robust import fewest, parse_robust
from .rule import Rule
from .schedule import parse_schedule
from .staleness import parse_staleness

#: Normalised weights beyond it would let one fresh update outweigh the federation.
_MAX_NORMALISED: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    """What a strategy's name gives to the dials that are open."""

    buffer_size: int = 5
    staleness: str = "constant"
    weighting: str = "uniform"
    learning_rate: float = 1.0
    max_staleness: int = 100
    late: str = "refuse"
    optimizer: str = "sgd"
    delay_limit: int | None = None
    memory: int = 1


_STRATEGIES: Final[Mapping[str, _Defaults]] = {
    "fedbuff": _Defaults(staleness="polynomial(0.5)"),
    "fedasync": _Defaults(buffer_size=1, staleness="polynomial(0.5)", learning_rate=0.6),
    "fedavg": _Defaults(buffer_size=0, weighting="examples", max_staleness=0),
    "ca2fl": _Defaults(staleness="polynomial(0.5)", late="refresh", memory=4),
    "fedfa": _Defaults(buffer_size=1),
    "fadas": _Defaults(optimizer="amsgrad", learning_rate=1e-3, delay_limit=1),
}
STRATEGIES: Final = tuple(_STRATEGIES)
#: With a step of its own for each coordinate, η is about how far one moves in a version. 0.01 swings (docs/folding.md).
_ADAPTIVE_RATE: Final = 0.003
_WINDOW: Final = 5
#: Models of the past are kept for as many versions as an update may be late, so that is fewer by default.
_MAX_STALENESS_WITH_PAST: Final = 16
#: A smaller share of `fold.kept_bytes` would refuse nearly everything.
_LEAST_KEPT: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSettings:
    """The dials."""

    strategy: str = setting("fedbuff", help="which rule names the dials' defaults", choices=STRATEGIES)
    buffer_size: int | None = setting(
        None,
        help="contributions per version (K); fedasync and fedfa: 1, fedavg: how many clients, others: 5",
        low=1,
    )
    staleness: str | None = setting(
        None, help="weight of late updates: constant, polynomial(a), hinge(a, b), exponential(a)"
    )
    normalise_staleness: bool = setting(
        False, help="divide the weight by its value at the running mean staleness, so the step keeps its size"
    )
    weighting: str | None = setting(
        None, help="uniform, or by number of examples", choices=("uniform", "examples")
    )
    rarity: float = setting(
        0.0,
        help="weight of clients that are rarely heard: (contributions since the last one / clients) to this power, "
        "between 1/4 and 4; 0 for none, 1 gives all clients the same part over time",
        low=0,
        high=2,
    )
    learning_rate: float | None = setting(None, help="the server's step η (FedAsync's α)", low=0)
    momentum: float = setting(0.0, help="the server's momentum β", low=0, high=0.999)
    max_staleness: int | None = setting(None, help="versions after which an update is late", low=0)
    late: str | None = setting(
        None,
        help="what becomes of late updates: they are refused, count less the later they are (discount), or only "
        "renew what ca2fl remembers of their client (refresh)",
        choices=("refuse", "discount", "refresh"),
    )
    optimizer: str | None = setting(
        None,
        help="the server's: sgd, adagrad(beta1, epsilon), adam(beta1, beta2, epsilon), yogi(…), amsgrad(…)",
    )
    schedule: str = setting(
        "constant",
        help="of η: constant, step(n, g), exponential(g), root(n, low), cosine(n, low); n in versions",
    )
    warmup_versions: int = setting(0, help="versions in which η rises to its size", low=0)
    delay_limit: int | None = setting(
        None, help="staleness beyond which η is divided by the largest in the buffer (FADAS's τ_c)", low=0
    )
    average: float = setting(
        0.0, help="what the running mean of the models keeps at each version; 0: the model itself is served",
        low=0, high=0.9999,
    )  # fmt: skip
    mixing: bool = setting(
        False, help="fold (base + delta) − model, as fedasync's paper does, instead of the delta"
    )
    compensation: str = setting(
        "none", help="of the delay, in each coordinate: none, constant(lambda), adaptive(lambda, m)"
    )
    clip_quantile: float | None = setting(
        None, help="clip contributions to this quantile of their norms", low=0.01, high=1
    )
    robust: str = setting(
        "none", help="mean of the buffer: none, median, trimmed(b), krum(f), multikrum(f, m), geometric(r)"
    )
    window: int | None = setting(None, help="updates in each step of fedfa; 5 if not given", low=1)
    clients: int | None = setting(
        None, help="clients that ca2fl averages over; those it remembers if not given", low=1
    )
    memory: int | None = setting(
        None,
        help="last updates of each client whose mean ca2fl remembers; 4 if not given, its paper has 1",
        low=1,
        high=64,
    )
    calibration: float | None = setting(
        None,
        help="how much of ca2fl's correction is made; as much as the clients' intervals differ if not given, "
        "in its paper 1",
        low=0,
        high=1,
    )
    forget_versions: int = setting(1000, help="versions of silence after which ca2fl forgets a client", low=1)
    kept_bytes: int = setting(
        268_435_456,
        help="bytes for updates that are kept: ca2fl forgets the client that was silent for longest, other rules "
        "refuse an update that is larger than its share",
        low=4096,
    )
    deadline: float | None = setting(
        None,
        help="seconds after its first contribution in which a version must fill; then it does with what it has",
        low=0.1,
    )


def make_rule(settings: FoldSettings) -> Rule:
    """Fill the dials that were left open from the strategy's name.

    Raises:
        SettingError: fedavg without `fold.buffer_size`, or a dial that contradicts the strategy or another dial.
    """
    defaults = _STRATEGIES[settings.strategy]
    optimizer = parse_optimizer(settings.optimizer or defaults.optimizer)
    compensation = parse_compensation(settings.compensation)
    rate, oldest = defaults.learning_rate, defaults.max_staleness
    window = (settings.window or _WINDOW) if settings.strategy == "fedfa" else 0
    if window:
        rate = 1 / window  # each update takes part in as many steps
    if optimizer.form != parse_optimizer(defaults.optimizer).form:
        rate = _ADAPTIVE_RATE if optimizer.is_adaptive else 1.0
    if settings.mixing or compensation is not None:
        oldest = min(oldest, _MAX_STALENESS_WITH_PAST)
    rule = Rule(
        buffer_size=settings.buffer_size or defaults.buffer_size,
        staleness=parse_staleness(settings.staleness or defaults.staleness),
        normalise_staleness=settings.normalise_staleness,
        by_examples=(settings.weighting or defaults.weighting) == "examples",
        learning_rate=rate if settings.learning_rate is None else settings.learning_rate,
        momentum=settings.momentum,
        max_staleness=oldest if settings.max_staleness is None else settings.max_staleness,
        synchronous=settings.strategy == "fedavg",
        method=settings.strategy if settings.strategy in ("ca2fl", "fedfa") else "mean",
        late=settings.late or defaults.late,
        optimizer=optimizer,
        schedule=parse_schedule(settings.schedule),
        warmup=settings.warmup_versions,
        delay_limit=defaults.delay_limit if settings.delay_limit is None else settings.delay_limit,
        average=settings.average,
        mixing=settings.mixing,
        compensation=compensation,
        clip_quantile=settings.clip_quantile,
        robust=parse_robust(settings.robust),
        window=window,
        clients=settings.clients,
        memory=settings.memory or defaults.memory,
        calibration=settings.calibration if settings.strategy == "ca2fl" else 1.0,
        forget_versions=settings.forget_versions,
        cache_bytes=settings.kept_bytes,
        deadline=settings.deadline,
        rarity=settings.rarity,
    )
    _check(settings, rule)
    return rule


def _check(settings: FoldSettings, rule: Rule) -> None:
    """Refuse dials that contradict each other."""
    name = settings.strategy
    if not rule.buffer_size:
        raise SettingError(
            "fold.buffer_size", None, "fedavg waits for this many clients in each version: say how many"
        )
    if name in ("fedasync", "fedfa") and rule.buffer_size != 1:
        raise SettingError("fold.buffer_size", rule.buffer_size, f"{name} folds each update: 1 is allowed")
    steepest = rule.staleness(rule.max_staleness)
    if rule.normalise_staleness and steepest < 1 / _MAX_NORMALISED:
        raise SettingError(
            "fold.normalise_staleness",
            True,
            f"{rule.staleness} falls to {steepest:g} at fold.max_staleness = {rule.max_staleness}: take a flatter "
            "weight or a lower max_staleness",
        )
    if rule.momentum and rule.optimizer.is_adaptive:
        raise SettingError(
            "fold.momentum",
            rule.momentum,
            f"{rule.optimizer.form} has a momentum of its own, its first number: leave this one out",
        )
    _check_companions(settings, rule)
    if rule.robust is not None:
        needed_size = fewest(rule.robust)
        if rule.buffer_size < needed_size:
            raise SettingError(
                "fold.buffer_size",
                rule.buffer_size,
                f"{rule.robust} needs at least {needed_size} contributions in a version",
            )
        if rule.deadline is not None and needed_size > 1:
            raise SettingError(
                "fold.deadline",
                rule.deadline,
                f"{rule.robust} needs {needed_size} contributions in every version, and a deadline promises none: "
                "leave one of them out",
            )
    if rule.largest_kept is not None and rule.largest_kept < _LEAST_KEPT:
        raise SettingError(
            "fold.kept_bytes",
            rule.cache_bytes,
            f"that leaves {rule.largest_kept} bytes for each update: at least {_LEAST_KEPT} are needed",
        )


def _check_companions(settings: FoldSettings, rule: Rule) -> None:
    """Refuse dials that need another one."""
    is_mean = rule.method == "mean"
    is_plain = is_mean and rule.robust is None
    summing = "fold.strategy other than ca2fl and fedfa"
    counts_once = rule.robust is not None and rule.robust.form != "geometric"
    for name, is_given, fits, needed in (
        ("window", settings.window is not None, rule.method == "fedfa", "fold.strategy = fedfa"),
        ("clients", settings.clients is not None, rule.method == "ca2fl", "fold.strategy = ca2fl"),
        ("calibration", settings.calibration is not None, rule.method == "ca2fl", "fold.strategy = ca2fl"),
        ("memory", settings.memory is not None, rule.method == "ca2fl", "fold.strategy = ca2fl"),
        ("late", rule.late == "refresh", rule.method == "ca2fl", "fold.strategy = ca2fl"),
        ("deadline", rule.deadline is not None, rule.buffer_size > 1, "fold.buffer_size > 1"),
        ("robust", rule.robust is not None, is_mean, summing),
        ("mixing", rule.mixing, is_plain, f"{summing}, and fold.robust = none"),
        ("compensation", rule.compensation is not None, is_plain, f"{summing}, and fold.robust = none"),
        ("compensation", rule.compensation is not None, not rule.mixing, "fold.mixing = false"),
        ("weighting", rule.by_examples, rule.method != "ca2fl", "fold.strategy other than ca2fl"),
        ("rarity", rule.rarity > 0, rule.method != "ca2fl", "fold.strategy other than ca2fl"),
        ("rarity", rule.rarity > 0, not counts_once, "fold.robust = none or geometric"),
        ("rarity", rule.rarity > 0, rule.method == "fedfa" or rule.buffer_size > 1, "fold.buffer_size > 1"),
        ("weighting", rule.by_examples, not counts_once, "fold.robust = none or geometric"),
    ):
        if is_given and not fits:
            value = getattr(settings, name)
            raise SettingError(f"fold.{name}", value, f"it needs {needed}: change one of them")
