"""The topic tree: the only file that spells a "/".

    fedmq/v1/<federation>/plan                     retained
    fedmq/v1/<federation>/model                    retained
    fedmq/v1/<federation>/object/<id>/<i>          retained
    fedmq/v1/<federation>/update/<shard>/<client>
    fedmq/v1/<federation>/receipt/<client>         retained
    fedmq/v1/<federation>/task/<client>            retained
    fedmq/v1/<federation>/client/<client>          retained
    fedmq/v1/<federation>/aggregator/<shard>       retained
    fedmq/v1/<federation>/stats/<name>             retained

Names contain no `.`, space, `+`, `#` or `/`: they would not survive every broker (NATS maps `.` to `//`).
"""

import re
from dataclasses import dataclass

from .errors import SettingError

ROOT = "fedmq/v1"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it may stand in a topic.

    Args:
        what: how the setting is called, for the message.
        name: what was given.

    Raises:
        SettingError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise SettingError(what, name, "1 to 64 of the characters A-Z a-z 0-9 _ - are allowed")
    return name


def is_name(name: str) -> bool:
    """Whether a name from the network may stand in a topic."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one federation."""

    federation: str

    def __post_init__(self) -> None:
        check_name("federation", self.federation)

    @property
    def _root(self) -> str:
        return f"{ROOT}/{self.federation}"

    @property
    def plan(self) -> str:
        """What to train."""
        return f"{self._root}/plan"

    @property
    def model(self) -> str:
        """The head of the newest model."""
        return f"{self._root}/model"

    def object(self, object_id: str, index: int) -> str:
        """Chunk `index` of a content-addressed object.

        The first 8 digits of its id name it well enough among the few that there are: a device spells this topic twice
        for every object, and the whole id is in the head.
        """
        return f"{self._root}/object/{object_id[:8]}/{index}"

    def update(self, shard: str, client: str) -> str:
        """Where a client publishes its updates."""
        return f"{self._root}/update/{shard}/{client}"

    def updates(self, shard: str) -> str:
        """Filter: all updates of a shard."""
        return f"{self._root}/update/{shard}/+"

    def receipt(self, client: str) -> str:
        """What became of a client's updates."""
        return f"{self._root}/receipt/{client}"

    def task(self, client: str) -> str:
        """A client's share of the work."""
        return f"{self._root}/task/{client}"

    def client(self, client: str) -> str:
        """A client's birth and will."""
        return f"{self._root}/client/{client}"

    @property
    def clients(self) -> str:
        """Filter: all births and wills of clients."""
        return f"{self._root}/client/+"

    def aggregator(self, shard: str) -> str:
        """An aggregator's birth and will."""
        return f"{self._root}/aggregator/{shard}"

    def stats(self, name: str) -> str:
        """Small JSON for dashboards."""
        return f"{self._root}/stats/{name}"

    @property
    def all_stats(self) -> str:
        """Filter: everything for dashboards."""
        return f"{self._root}/stats/#"

    @property
    def everything(self) -> str:
        """Filter: all topics of the federation."""
        return f"{self._root}/#"


def last_level(topic: str) -> str:
    """The last level of a topic: the client of an update, the index of an object's chunk."""
    return topic.rsplit("/", 1)[-1]
