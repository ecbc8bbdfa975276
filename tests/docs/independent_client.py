"""A fedmq client written from `docs/protocol.md` alone: the standard library and msgpack, nothing of fedmq.

It proves that the page is complete. Numbers are Python floats rounded to float32 after each operation, as the page
allows; tensors are flat lists; the network is whatever calls `Client.receive` and takes `publish`, `subscribe`.
Section numbers in comments are those of the page.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack

PLAN, MODEL, UPDATE, CHUNK, RECEIPT, CLIENT, AGGREGATOR = 1, 2, 3, 4, 5, 7, 8
SMALLEST_NORMAL, LARGEST_SCALE = 2.0**-126, struct.unpack(">f", bytes.fromhex("7c010203"))[0]


class Invalid(ValueError):
    """What came is not what the page says."""


# 3. The envelope


def seal(kind, body):
    packed, head = msgpack.packb(body), bytes([1, kind])
    return head + struct.pack(">I", zlib.crc32(head + packed)) + packed
