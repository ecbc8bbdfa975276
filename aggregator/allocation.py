"""Allocation: each client's share of the work, from what arrives. Pure; the clock is the service's.

`acquaintance` says what is known of a client, `compass` and `even` how many steps it is to do; here are codec, rest,
and what is worth publishing. Nothing is durable: a new life of the aggregator knows nobody, every client does the
plan's work until two of its updates have come, and shares of the life before count for nothing but their jitter (see
`fedmq.share`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fedmq import wire
from fedmq.codecs import parse_pipeline
from fedmq.errors import CodecError, SettingError, WireError
from fedmq.settings import setting
from fedmq.share import (
    ACCEPTS_SHARES,
    MAX_JITTER_SECONDS,
    MAX_LOCAL_STEPS,
    MAX_WAIT_SECONDS,
    TRAIN_SECONDS,
    Share,
)

from .acquaintance import Acquaintance, Acquaintances, Heard
from .compass import Compass
from .deadline import NOBODY
from .decision import Record
from .even import Even

POLICIES: Final = ("none", "compass", "even")
#: How much the newest speed counts: FedCompass's 0.9; less where nobody's arrival is to follow one device's noise.
_MOMENTUM: Final = {"compass": 0.9, "even": 0.25}
#: A client whose link takes longer than this part of its training gets the next codec of the ladder.
_LINK_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSettings:
    """How the work is shared out."""

    policy: str = setting(
        "none",
        help="steps of each client: none (the plan's epochs), compass (groups arrive together), even (updates come "
        "at even intervals)",
        choices=POLICIES,
    )
    min_steps: int = setting(20, help="optimiser steps of one update at least", low=1, high=MAX_LOCAL_STEPS)
    max_steps: int = setting(100, help="optimiser steps of one update at most", low=1, high=MAX_LOCAL_STEPS)
    latest_factor: float = setting(
        1.2, help="compass: how late a group may be, in times of its work (λ)", low=1, high=100
    )
    concurrency: int = setting(
        0, help="even: clients at work at a time, on average; the others rest; 0 for all", low=0
    )
    codecs: str = setting(
        "", help="pipelines from good to slow links, with ; between; the plan's alone if not given"
    )
    jitter: float = setting(
        5.0,
        help="seconds over which clients spread their first pull when the aggregator or the broker was away",
        low=0,
        high=MAX_JITTER_SECONDS,
    )
    hysteresis: float = setting(
        0.05, help="part by which a share must change to be published again", low=0, high=1
    )
    forget_seconds: float = setting(
        3600.0, help="seconds of silence after which a client's share is cleared", low=1
    )

    def __post_init__(self) -> None:
        if self.min_steps > self.max_steps:
            raise SettingError("allocate.min_steps", self.min_steps, "at most allocate.max_steps is allowed")
        for codec in self.ladder:
            try:
                parse_pipeline(codec)
            except CodecError as error:
                raise SettingError("allocate.codecs", codec, f"a pipeline is allowed ({error})") from None

    @property
    def ladder(self) -> tuple[str, ...]:
        """The codecs, the one for the best links first; empty for the plan's alone."""
        return tuple(text for part in self.codecs.split(";") if (text := part.strip()))


class Allocation:
    """Who is asked for what.

    Args:
        settings: the operator's.
        boot: of this life of the aggregator.
    """

    def __init__(self, settings: AllocationSettings, boot: int) -> None:
        self._settings, self._boot, self._ladder = settings, boot, settings.ladder
        self.clients = Acquaintances(_MOMENTUM.get(settings.policy, 1.0))
        low, high = settings.min_steps, settings.max_steps
        self._compass = Compass(
            self.clients, min_steps=low, max_steps=high, latest_factor=settings.latest_factor
        )
        self._even = Even(self.clients, min_steps=low, max_steps=high, concurrency=settings.concurrency)

    @property
    def is_on(self) -> bool:
        """Whether anybody is asked for anything."""
        return self._settings.policy != "none"

    def note(self, records: Iterable[Record], now: float) -> Iterator[tuple[str, Share | None]]:
        """Take note of what was folded.

        Args:
            records: of the journal.
            now: seconds, monotonic.

        Yields:
            Each client with the share to publish, or None to clear it.
        """
        if self.is_on:
            for record in records:
                if record.refusal is None and record.id.client != NOBODY:
                    yield from self.hear(_heard(record, now))

    def hear(self, heard: Heard) -> Iterator[tuple[str, Share | None]]:
        """Take note of one update; yields as `note` does."""
        known = self.clients.learn(heard)
        for client, gone in self.clients.forget(heard.time, self._settings.forget_seconds):
            self._compass.forget(client)
            self._even.forget(client)
            if gone.asked is not None:
                yield client, None
        share = self._share(heard.client, known, heard.time)
        if not known.accepts:
            if known.asked is not None:
                known.asked = None
                yield heard.client, None
        elif self._is_news(known, share):
            known.before = known.asked.local_steps if known.asked is not None else 0
            known.asked, known.is_published = share, True
            yield heard.client, share

    def doubt(self) -> None:
        """The broker may have lost what it kept: each client's next share is published, whatever it is."""
        for _, known in self.clients:
            known.is_published = False

    def _share(self, client: str, known: Acquaintance, now: float) -> Share:
        jitter = self._settings.jitter
        if known.step_seconds is None:  # asks for the plan's work, and to be told how long it takes
            return Share(boot=self._boot, jitter=jitter, codec=self._codec(known, 0))
        wait = 0.0
        if self._settings.policy == "even":
            turn = self._even.turn(client, now)
            steps, wait = turn.steps, min(turn.wait, MAX_WAIT_SECONDS)
        else:
            steps = self._compass.steps(client, now)
        return Share(
            boot=self._boot, local_steps=steps, wait=wait, jitter=jitter, codec=self._codec(known, steps)
        )

    def _codec(self, known: Acquaintance, steps: int) -> str:
        """The codec for a client's link, empty for the plan's.

        Down the ladder when the link takes too long; up again only if the link would not take too long for updates
        of the size that they had up there.
        """
        if not self._ladder:
            return ""
        training = steps * (known.step_seconds or 0.0)
        if training > 0:
            if known.link_seconds > _LINK_SHARE * training:
                known.rung = min(known.rung + 1, len(self._ladder) - 1)
            elif known.rung and (size := known.sizes.get(known.rung)):
                larger = known.link_seconds * known.sizes.get(known.rung - 1, size) / size
                known.rung -= larger <= _LINK_SHARE * training
        return self._ladder[known.rung]

    def _is_news(self, known: Acquaintance, share: Share) -> bool:
        """Whether a share differs enough from the one in force to be worth a message."""
        asked, part = known.asked, self._settings.hysteresis
        if asked is None or not known.is_published or asked.codec != share.codec:
            return True
        if not asked.local_steps:
            return bool(share.local_steps)
        least = part * max(known.period, 1e-9)
        return (
            abs(share.local_steps - asked.local_steps) > part * asked.local_steps
            or abs(share.wait - asked.wait) > least
        )


def _heard(record: Record, now: float) -> Heard:
    """What a record of the journal tells."""
    try:
        update = wire.unpack_update(record.message)
    except WireError as error:  # it was read before it was folded
        raise AssertionError(f"record {record.position} holds no update") from error
    claims = dict(update.metrics)
    seconds = claims.get(TRAIN_SECONDS)
    return Heard(
        client=update.id.client,
        time=now,
        local_steps=min(update.local_steps, MAX_LOCAL_STEPS),
        base_version=update.base_version,
        size=len(record.message),
        train_seconds=seconds if seconds is not None and seconds >= 0 else None,  # NaN fails, too
        accepts=claims.get(ACCEPTS_SHARES) != 0.0,
    )
