"""Dials: what a name fills in, and what contradicts what."""

import dataclasses

import pytest
from fedmq.aggregator.dials import STRATEGIES, FoldSettings, make_rule
from fedmq.aggregator.rule import Rule, pack_rule, unpack_rule

from fedmq.envelope import MAX_INTEGER
from fedmq.errors import SettingError

PLAIN: list[dict[str, object]] = [
    {},
    {"strategy": "fedasync"},
    {"strategy": "fedavg", "buffer_size": 7},
    {"strategy": "ca2fl", "clients": 20, "forget_versions": 50},
    {"strategy": "fedfa", "window": 9, "weighting": "examples"},
    {"strategy": "fadas"},
    {"strategy": "fedasync", "mixing": True, "average": 0.9},
    {"compensation": "adaptive(0.1)", "optimizer": "yogi", "schedule": "cosine(1000, 0.1)", "warmup_versions": 5},
    {"robust": "multikrum(1, 3)", "clip_quantile": 0.5, "kept_bytes": 10**6},
    {"strategy": "fedavg", "buffer_size": 9, "deadline": 60.0, "robust": "median", "weighting": "uniform"},
    {"robust": "geometric", "weighting": "examples", "late": "discount", "delay_limit": 3},
]  # fmt: skip


def make(fold: dict[str, object]) -> Rule:
    """A rule from some dials."""
    return make_rule(FoldSettings(**fold))  # type: ignore[arg-type]


@pytest.mark.parametrize("fold", PLAIN, ids=str)
def test_a_rule_is_what_it_was_after_a_snapshot(fold: dict[str, object]) -> None:
    """Through plain numbers and texts, to the last bit."""
    rule = make(fold)
    packed = pack_rule(rule)

    assert rule == unpack_rule(packed)
    assert all(isinstance(value, str | int | float | None) for value in packed.values())
    assert {field.name for field in dataclasses.fields(Rule)} == packed.keys()


def test_a_rule_of_an_older_release_folds_as_it_did() -> None:
    """What it did not know is switched off."""
    old = {
        "buffer_size": 5, "staleness": "polynomial(0.5)", "normalise_staleness": False, "by_examples": False,
        "learning_rate": 1.0, "momentum": 0.0, "max_staleness": 100, "synchronous": False,
    }  # fmt: skip

    assert make({}) == unpack_rule(old)


def test_the_names_of_the_papers_fill_the_dials_that_are_open() -> None:
    """One row for each strategy: K, s, eta, limit, what becomes of late ones, the optimiser, tau_c."""
    rows = {}
    for name in STRATEGIES:
        rule = make({"strategy": name, "buffer_size": 4} if name == "fedavg" else {"strategy": name})
        rows[name] = (
            rule.buffer_size, str(rule.staleness), rule.learning_rate, rule.max_staleness, rule.late,
            rule.optimizer.form, rule.delay_limit,
        )  # fmt: skip

    assert {
        "fedbuff": (5, "polynomial(0.5)", 1.0, 100, "refuse", "sgd", None),
        "fedasync": (1, "polynomial(0.5)", 0.6, 100, "refuse", "sgd", None),
        "fedavg": (4, "constant", 1.0, 0, "refuse", "sgd", None),
        "ca2fl": (5, "polynomial(0.5)", 1.0, 100, "refresh", "sgd", None),
        "fedfa": (1, "constant", 0.2, 100, "refuse", "sgd", None),
        "fadas": (5, "constant", 1e-3, 100, "refuse", "amsgrad", 1),
    } == rows


def test_an_adaptive_optimiser_has_a_rate_of_its_own() -> None:
    """With 1.0 each coordinate would move by about 1 in every version."""
    assert 0.003 == make({"optimizer": "adam"}).learning_rate
    assert 0.3 == make({"optimizer": "adam", "learning_rate": 0.3}).learning_rate
    assert 0.003 == make({"strategy": "ca2fl", "optimizer": "yogi"}).learning_rate
    assert 0.6 == make({"strategy": "fedasync"}).learning_rate
    assert (1e-3, 1.0) == tuple(
        make({"strategy": "fadas", "optimizer": o}).learning_rate for o in (None, "sgd")
    )


def test_the_longer_fedfas_window_the_shorter_its_step() -> None:
    """Each update takes part in K of them: in all it moves the model as far as in a FedBuff of K."""
    assert (5, 0.2) == (make({"strategy": "fedfa"}).window, make({"strategy": "fedfa"}).learning_rate)
    assert 0.1 == make({"strategy": "fedfa", "window": 10}).learning_rate
    assert 1.0 == make({"strategy": "fedfa", "window": 10, "learning_rate": 1.0}).learning_rate


def test_what_may_be_late_is_admitted_however_late() -> None:
    """The plan tells clients the age at which an update is refused."""
    assert 100 == make({}).oldest_admitted
    assert MAX_INTEGER == make({"late": "discount"}).oldest_admitted
    assert MAX_INTEGER == make({"strategy": "ca2fl"}).oldest_admitted
    assert 100 == make({"strategy": "ca2fl", "late": "refuse"}).oldest_admitted


@pytest.mark.parametrize(
    ("fold", "name", "message"),
    [
        ({"strategy": "fedfa", "buffer_size": 3}, "buffer_size", "fedfa folds each update: 1 is allowed"),
        ({"window": 3}, "window", "it needs fold.strategy = fedfa: change one of them"),
        ({"clients": 3}, "clients", "it needs fold.strategy = ca2fl"),
        ({"late": "refresh"}, "late", "it needs fold.strategy = ca2fl"),
        ({"strategy": "fedasync", "deadline": 3.0}, "deadline", "it needs fold.buffer_size > 1"),
        ({"strategy": "ca2fl", "robust": "median"}, "robust", "fold.strategy other than ca2fl and fedfa"),
        ({"strategy": "fedfa", "mixing": True}, "mixing", "fold.strategy other than ca2fl and fedfa"),
        ({"robust": "median", "mixing": True}, "mixing", "and fold.robust = none"),
        ({"strategy": "ca2fl", "compensation": "constant(1)"}, "compensation", "fold.strategy other than"),
        ({"mixing": True, "compensation": "constant(1)"}, "compensation", "it needs fold.mixing = false"),
        ({"strategy": "ca2fl", "weighting": "examples"}, "weighting", "fold.strategy other than ca2fl"),
        ({"robust": "median", "weighting": "examples"}, "weighting", "fold.robust = none or geometric"),
        ({"strategy": "fedavg", "buffer_size": 3, "robust": "median"}, "weighting", "none or geometric"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum", "adam has a momentum of its own"),
        ({"strategy": "fadas", "momentum": 0.9}, "momentum", "amsgrad has a momentum of its own"),
        ({"robust": "krum(2)"}, "buffer_size", "krum(2.0) needs at least 7 contributions in a version"),
        ({"robust": "multikrum(1, 6)"}, "buffer_size", "needs at least 6 contributions"),
        (
            {"strategy": "fedavg", "buffer_size": 9, "deadline": 1.0, "robust": "krum(1)", "weighting": "uniform"},
            "deadline",
            "a deadline promises none",
        ),
        ({"robust": "median", "kept_bytes": 4096}, "kept_bytes", "that leaves 819 bytes for each update"),
    ],
)  # fmt: skip
def test_dials_that_contradict_each_other_are_refused(
    fold: dict[str, object], name: str, message: str
) -> None:
    """With the setting to change and what to do."""
    with pytest.raises(SettingError) as caught:
        make(fold)

    assert f"fold.{name}" == caught.value.name
    assert message in str(caught.value)
