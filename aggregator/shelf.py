"""The shelf: what a publisher knows, kept in the store from one life of the aggregator to the next.

Without the published model's frames a restart would cost every client a keyframe. They are worth no more than that:
whatever goes wrong with them here is logged, and a keyframe follows. Whom it has seen the journal tells.
"""

import logging
from itertools import takewhile
from typing import Final

from fedmq.errors import StoreError, WireError
from fedmq.types import GlobalModel

from .deadline import NOBODY
from .publisher import Publisher
from .store import Store

#: Updates of the journal that tell how long clients stay away.
_VISITS: Final = 4096

log = logging.getLogger(__name__)


class Shelf:
    """Puts what a store holds back into a publisher, and what is new there into the store.

    Args:
        store: where.
        publisher: whose; it goes on with what is found.
        model: as it was recovered.

    Raises:
        StoreError: the store cannot be read.
    """

    def __init__(self, store: Store, publisher: Publisher, model: GlobalModel) -> None:
        self._store, self._publisher = store, publisher
        self._kept = store.frames()
        for client, version in store.visits(_VISITS):
            if client != NOBODY:
                publisher.absence.note(client, version)
        try:
            publisher.restore(model, self._kept)
        except WireError as error:
            log.warning("the frames of the published model cannot be used, a keyframe follows: %s", error)

    def save(self) -> None:
        """Keep the publisher's frames, if there is a new one."""
        frames = self._publisher.frames
        if frames == self._kept:
            return
        pairs = zip(frames, self._kept, strict=False)
        unchanged = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        try:
            self._store.save_frames(frames, unchanged)
        except StoreError as error:
            log.error("the frames of the published model were not kept: %s", error)
        else:
            self._kept = frames
