"""What a TCP connection has carried, as the kernel counts it.

What lives here: the reading of Linux's `TCP_INFO` (struct tcp_info, include/uapi/linux/tcp.h). What must not: MQTT.

The counts are those of the byte stream, with TLS where there is any. Headers, acknowledgements and what TCP repeats by
itself are not in them. What they leave to the reader:

* Sent. `tcpi_bytes_sent` counts a byte each time that it leaves, so `tcpi_bytes_retrans` is taken off. What waits in
  the send buffer is not in it yet. (`tcpi_bytes_acked` would be late, and it counts SYN and FIN as a byte each.)
* Received. `tcpi_bytes_received` counts the peer's FIN as a byte. The state tells whether it has come, but for CLOSE,
  to which a reset leads as well.
* Kernels before 4.19 have a shorter struct, and sandboxes may leave it empty: then nothing is known.
"""

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

_LAYOUT: Final = struct.Struct("=B127xQ64xQQ")  # state, bytes_received, bytes_sent, bytes_retrans
_CLOSE: Final = 7  # include/net/tcp_states.h, as the next line
_PEER_HAS_ENDED: Final = frozenset({6, 8, 9, 11})  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """Bytes of one connection's stream, both ways."""

    sent: int
    received: int


def carried(sock: socket.socket, *, ended: bool = False) -> Carried | None:
    """What a connection has carried so far.

    Args:
        sock: TCP, or TLS over it; open, whatever has become of the connection.
        ended: the peer's FIN has come; asked where the state does not tell.

    Returns:
        None where the kernel does not say.
    """
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAYOUT.size)
    except OSError:
        return None
    return parse(info, ended=ended)


def parse(info: bytes, *, ended: bool = False) -> Carried | None:
    """The counts in a `struct tcp_info`; None when they are not in it. `ended` as in `carried`."""
    if len(info) < _LAYOUT.size:
        return None
    state, received, sent, repeated = _LAYOUT.unpack_from(info)
    if not sent and not received:
        return None
    has_ended = ended if state == _CLOSE else state in _PEER_HAS_ENDED
    return Carried(sent=sent - repeated, received=received - has_ended)


def was_ended_before_reset(sock: socket.socket) -> bool:
    """Whether a connection that was reset had had the peer's FIN before: EPIPE then, ECONNRESET otherwise.

    Takes the error from the socket, and cannot tell when a read or a write took it before.
    """
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
