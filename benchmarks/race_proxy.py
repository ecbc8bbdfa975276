"""The count of bytes: a TCP proxy before the server for each client, the same for all systems.

What is counted is what TCP carries, in both directions, from the first byte of the connection on: handshakes,
headers, acknowledgements and keep-alives of whatever protocol lies above. One proxy for each client, because a
counter that two connections add to could lose an addition.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fedmq.testing.proxy import Proxy


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What has passed so far.

    Attributes:
        up: bytes from clients to the server.
        down: bytes from the server to clients.
    """

    up: int
    down: int


class Counters:
    """The proxies of one run.

    Args:
        proxies: one for each client.
    """

    def __init__(self, proxies: list[Proxy]) -> None:
        self._proxies = proxies
        self.ports = [proxy.port for proxy in proxies]

    def point_to(self, port: int) -> None:
        """Where connections go from now on; before, they are refused."""
        for proxy in self._proxies:
            proxy.target = port

    def read(self) -> Count:
        """The sum over all clients."""
        return Count(
            up=sum(proxy.bytes_up for proxy in self._proxies),
            down=sum(proxy.bytes_down for proxy in self._proxies),
        )


@contextmanager
def counters(clients: int) -> Iterator[Counters]:
    """Proxies that listen."""
    with ExitStack() as stack:
        yield Counters([stack.enter_context(Proxy(None)) for _ in range(clients)])
