"""The transport over MQTT, by paho. The one file that imports it.

What lives here: `MqttTransport`. What must not: anything that knows what the messages mean.

Theory of operation. One thread per transport, the network thread, owns the paho client: it alone calls it, through
the interface paho has for foreign event loops (`reconnect`, `loop_read`, `loop_write`, `loop_misc`), so paho's
locks are never contended and no callback can deadlock. The caller's thread leaves commands in a queue and takes
events from another. Having the loop to ourselves gives what paho's own lacks: a jittered wait between attempts,
a limit on the wait for CONNACK, limits that take effect on the running connection, and a close that is heard.

* Acks. `Delivery.ack` names the delivery by a number of our own. Those of a broken connection are forgotten, so
  a late or a second ack reaches nobody: brokers reuse packet ids for other messages.
* Publishes wait in a `Flight` and go to paho as far as the window allows: the smaller of `max_inflight` and the
  broker's Receive Maximum. One enters at a time, when the one before it is written, so that a ping never waits
  behind more than one. In a session that outlives its connections paho sends the unacknowledged ones again at the
  next one, with their packet ids and DUP. In one that does not, they are taken back and go out as new: for the broker
  they are.
* Topic aliases are used in the latter sessions only. paho would send an aliased publish again as it was, and a broker
  hangs up on an alias of another connection (eclipse-paho/paho.mqtt.python issue 893); taken back, each gets the
  spelling of the connection that it goes out on.
* Subscriptions are sent again at each connection until the broker has answered them.
* Traffic is what a `Meter` says. It asks the kernel about paho's socket; the packets, of which it is told when they
  are handed to paho or come from it, say what the bytes are.

Longer than 350 lines, because paho stays in one file, and its loop, its callbacks and what they share are one.
"""

import itertools
import logging
import math
import os
import queue
import random
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fedmq.errors import PacketTooLargeError, SettingError, TransportError
from fedmq.transport import packet_size
from fedmq.transport.base import (
    Connected,
    Delivery,
    Disconnected,
    Event,
    PublishAccepted,
    PublishRefused,
    PublishToken,
    SubscriptionRefused,
    Traffic,
    check_expiry,
)
from fedmq.transport.filters import check_filter, check_topic
from fedmq.transport.flight import STRIKES, TAKEN_OVER, Flight, Publish
from fedmq.transport.meter import Meter
from fedmq.transport.mqtt_settings import MqttSettings
from fedmq.transport.topic_alias import TopicAliases

__all__ = ["MqttSettings", "MqttTransport"]

_NO_SUBSCRIBERS = 0x10
_FAILURE = 0x80  # reason codes from here on
_RECEIVE_MAXIMUM = 65535  # MQTT 5 section 3.2.2.3.3: what a broker that announces nothing takes
_TICK = (
    1.0  # seconds between looks at the keepalive, or a quarter of it: brokers hang up after one and a half
)
_GOODBYE = 1.0  # seconds for what is queued when closing, and again for the goodbye itself

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """A subscription, or its end, that the broker has not answered."""

    topic_filter: str
    wanted: bool
    mid: int | None = None


class MqttTransport:
    """A `Transport` over TCP or TLS to any MQTT broker.

    Raises:
        SettingError: a TLS file that cannot be used.
    """

    def __init__(self, settings: MqttSettings) -> None:
        # The caller's thread.
        self._settings = settings
        self._v5 = settings.protocol == "5"
        self._tick = min(_TICK, settings.keepalive / 4)
        self._persistent = not settings.clean_start and settings.session_expiry > 0
        self._tokens = itertools.count(1)
        self._outcomes_awaited = 0
        self._started = False
        self._closed = False
        self._meter = Meter()
        self._client = self._make_client()
        # Between the threads.
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: somebody called `wake`
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken = False
        self._bell, self._bell_rope = socket.socketpair()
        self._bell.setblocking(False)
        self._bell_rope.setblocking(False)
        self._largest_packet: int | None = None  # None while there is no connection
        # The network thread.
        self._thread = threading.Thread(
            target=self._run, name=f"fedmq-mqtt-{settings.client_id}", daemon=True
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        # Seeded by the name: each agent waits differently, and each run alike.
        self._random = random.Random(settings.client_id)
        self._attempts = 0
        self._delay = 0.0
        self._retry_at = 0.0
        self._attempted_at = 0.0
        self._connected_at = 0.0
        self._attempting = False
        self._online = False
        self._refusal: str | None = None
        self._hopeless = False
        self._flight = Flight(settings.max_inflight)
        self._aliases = TopicAliases(0)
        self._requests: dict[str, _Request] = {}
        self._serials = itertools.count(1)
        self._unacknowledged: dict[int, int] = {}  # serial -> packet id, of this connection
        self._close_by: float | None = None
        # Messages of QoS 0, to which no window applies, that may wait unread; and those that did not wait.
        self._unread_limit = min(settings.max_queued, settings.receive_maximum)
        self._overflow = 0

    # The port.

    @property
    def traffic(self) -> Traffic:
        """What went over the wire so far."""
        return self._meter.traffic

    def start(self) -> None:
        """Begin to connect."""
        if not self._started and not self._closed:
            self._started = True
            self._thread.start()

    def poll(self, timeout: float | None = None) -> Event | None:
        """Take the next event; after `close` only what is left."""
        try:
            event = self._events.get(block=not self._closed and timeout != 0, timeout=timeout)
        except queue.Empty:
            return None
        if event is None:
            self._woken = False
        elif isinstance(event, PublishAccepted | PublishRefused):
            self._outcomes_awaited -= 1
        return event

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry: float | None = None
    ) -> PublishToken:
        """Queue one publish. The expiry counts from when it is sent; MQTT 3.1.1 has none and ignores it."""
        check_topic(topic)
        check_expiry(expiry)
        if self._closed:
            raise TransportError(f"publish to {topic!r} after close")
        if self._outcomes_awaited >= self._settings.max_queued:
            raise TransportError(
                f"{self._outcomes_awaited} publishes already wait for their outcome: poll before publishing "
                "more, or raise max_queued"
            )
        properties = 0
        if self._v5:
            properties = 1 + (0 if expiry is None else packet_size.MESSAGE_EXPIRY_PROPERTY)
        size = packet_size.publish(topic, len(payload), properties=properties)
        largest = self._largest_packet or packet_size.LARGEST_PACKET
        if size > largest:
            raise PacketTooLargeError(topic, size, largest)
        token = PublishToken(next(self._tokens))
        self._outcomes_awaited += 1
        publish = Publish(
            token=token, topic=topic, payload=bytes(payload), retain=retain, expiry=expiry, size=size
        )
        self._command(partial(self._flight.add, publish))
        return token

    def subscribe(self, topic_filter: str) -> None:
        """Subscribe at QoS 1, now or at the next connection."""
        check_filter(topic_filter)
        self._command(partial(self._take_request, _Request(topic_filter=topic_filter, wanted=True)))

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe, now or at the next connection."""
        check_filter(topic_filter)
        self._command(partial(self._take_request, _Request(topic_filter=topic_filter, wanted=False)))

    def wake(self) -> None:
        """Make `poll` return None once."""
        if not self._woken:
            self._woken = True
            self._events.put(None)

    def close(self) -> None:
        """Send what can be sent within a second, take leave, stop."""
        if self._closed:
            return
        self._closed = True
        if self._started:
            self._command(self._begin_close)
            # One that hangs in an attempt to connect is not waited for: it ends by itself when that returns.
            self._thread.join(3 * _GOODBYE)
        else:
            self._release()

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        # A full bell rope is a bell that rings already; a closed one has nobody to hear it.
        with suppress(OSError):
            self._bell_rope.send(b"\0")

    # The network thread's loop.

    def _run(self) -> None:
        try:
            while True:
                self._run_commands()
                if self._may_stop():
                    break
                if self._client.socket() is not None:
                    self._push()
                    left = self._tick if self._close_by is None else self._close_by - time.monotonic()
                    self._wait(max(0.0, min(left, self._tick)))
                    self._watch_connack()
                elif self._close_by is None and (delay := self._retry_at - time.monotonic()) > 0:
                    self._wait(delay)
                elif self._close_by is None:
                    self._attempt()
            self._say_goodbye()
        finally:
            self._largest_packet = None
            if not self._closed:
                self._events.put(Disconnected(reason="the network thread died; see its traceback"))
            self._release()

    def _release(self) -> None:
        self._selector.close()
        self._bell.close()
        self._bell_rope.close()

    def _run_commands(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()

    def _wait(self, seconds: float) -> None:
        """Let the network move, for so long at most."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._client.want_write() else 0)
            self._selector.modify(sock, wanted)
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            seconds = 0  # already decrypted, so the selector cannot see it
        ready = {key.fileobj: mask for key, mask in self._selector.select(seconds)}
        if self._bell in ready:
            with suppress(BlockingIOError):
                self._bell.recv(4096)
        if isinstance(sock, socket.socket):
            mask = ready.get(sock, 0)
            if mask & selectors.EVENT_READ or (isinstance(sock, ssl.SSLSocket) and sock.pending()):
                self._client.loop_read()
            if mask & selectors.EVENT_WRITE:
                self._client.loop_write()
            self._client.loop_misc()

    def _attempt(self) -> None:
        """Connect once; the outcome comes through the callbacks, or right here."""
        if self._hopeless:
            self._hopeless = False
            self._recall()
            words = f"The connection broke {STRIKES} times while it was being sent"
            self._refuse(self._flight.take_hopeless(), words)
        self._attempting = True
        self._attempted_at = time.monotonic()
        try:
            self._client.reconnect()
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            self._lost(f"cannot connect to {self._settings.host}:{self._settings.port}: {error}")
        else:
            self._meter.sent(self._connect_bytes)

    def _watch_connack(self) -> None:
        late = time.monotonic() - self._attempted_at > self._settings.connect_timeout
        if self._attempting and not self._online and late:
            self._refusal = f"no answer to CONNECT within {self._settings.connect_timeout} s"
            self._hang_up()

    def _hang_up(self) -> None:
        """Break the connection, through paho: a write on a dead socket fails, and it cleans up."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            self._meter.closed(sock)
            with suppress(OSError):
                # Not SSLSocket's, which would strip the encryption from the open socket first.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._client.disconnect()
        self._client.loop_write()

    def _may_stop(self) -> bool:
        if self._close_by is None:
            return False
        return not self._online or not self._flight or time.monotonic() >= self._close_by

    def _begin_close(self) -> None:
        self._close_by = time.monotonic() + _GOODBYE

    def _say_goodbye(self) -> None:
        """Send DISCONNECT so that the broker reads it.

        paho closes the socket as soon as it is written. When deliveries are unread at that moment, TCP answers
        them with a reset, on which the broker may throw away our DISCONNECT and publish the will. So a second
        handle keeps the socket open until the broker has hung up.
        """
        sock = self._client.socket()
        if sock is None:
            return
        deadline = time.monotonic() + _GOODBYE
        with socket.socket(fileno=os.dup(sock.fileno())) as handle:
            self._meter.follow(handle)
            self._client.disconnect()
            self._meter.sent(packet_size.disconnect(reason=0, properties=1))
            while self._client.socket() is not None and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
            if self._client.socket() is not None:
                self._hang_up()
            ended = False
            with suppress(OSError):
                handle.shutdown(socket.SHUT_WR)
                while not ended and (left := deadline - time.monotonic()) > 0:
                    handle.settimeout(left)
                    ended = not handle.recv(65536)
            self._meter.closed(handle, ended=ended)

    # Sending.

    def _push(self) -> None:
        """Hand the next publish to paho, when it has written the one before."""
        publish = self._flight.next()
        if publish is None or not self._online or self._client.want_write():
            return
        topic, alias = self._aliases.spell(publish.topic)
        properties = None
        if self._v5 and (publish.expiry is not None or alias is not None):
            properties = _properties(PacketTypes.PUBLISH)
            if publish.expiry is not None:
                properties.MessageExpiryInterval = math.ceil(publish.expiry)
            if alias is not None:
                properties.TopicAlias = alias
        info = self._client.publish(
            topic, publish.payload, qos=1, retain=publish.retain, properties=properties
        )
        if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:  # the id, after 65,535 others, is still in flight
            self._flight.send(info.mid)
            self._aliases.sent(publish.topic, alias)
            size = packet_size.publish(topic, len(publish.payload), properties=self._packed(properties))
            self._meter.sent(size, payload=len(publish.payload), topic=len(topic.encode()))

    def _take_request(self, request: _Request) -> None:
        self._requests[request.topic_filter] = request
        if self._online:
            self._send_request(request)

    def _send_request(self, request: _Request) -> None:
        if request.wanted:
            _, request.mid = self._client.subscribe(request.topic_filter, qos=1)
            size = packet_size.subscribe(request.topic_filter, properties=int(self._v5))
        else:
            _, request.mid = self._client.unsubscribe(request.topic_filter)
            size = packet_size.unsubscribe(request.topic_filter, properties=int(self._v5))
        self._meter.sent(size)

    def _acknowledge(self, serial: int) -> None:
        packet_id = self._unacknowledged.pop(serial, None)
        if packet_id is not None:
            self._client.ack(packet_id, 1)
            self._meter.sent(packet_size.puback(reason=0, properties=int(self._v5)))

    def _recall(self) -> None:
        """Take everything back from paho. The packet ids are lost, and with them the DUP marks."""
        self._client.drop_out_messages()
        self._flight.recall()

    def _refuse(self, publishes: list[Publish], reason: str) -> None:
        for publish in publishes:
            self._events.put(PublishRefused(token=publish.token, reason=reason))

    # What paho calls, in the network thread.

    def _on_socket_open(self, _client: Client, _data: object, sock: object) -> None:
        if isinstance(sock, socket.socket):
            # Else two small packets in a row wait 40 ms for the acknowledgement of the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ)
        self._meter.opened(sock)

    def _on_socket_close(self, _client: Client, _data: object, sock: object) -> None:
        if isinstance(sock, socket.socket):
            self._selector.unregister(sock)
        self._meter.closed(sock)

    def _on_connect(
        self,
        _client: Client,
        _data: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._meter.received(packet_size.connack(properties=self._packed(properties)))
        if reason.is_failure:
            self._refusal = f"connection refused: {reason}"
            return
        receive_maximum = getattr(properties, "ReceiveMaximum", _RECEIVE_MAXIMUM)
        largest = getattr(properties, "MaximumPacketSize", packet_size.LARGEST_PACKET)
        self._online = True
        self._connected_at = time.monotonic()
        self._largest_packet = largest
        self._events.put(
            Connected(
                session_present=flags.session_present,
                receive_maximum=receive_maximum,
                maximum_packet_size=largest,
            )
        )
        # paho sends what is unacknowledged when this returns; here is the place to take it back.
        if self._flight.opened(receive_maximum=receive_maximum, largest=largest) or not self._persistent:
            self._recall()
        self._refuse(self._flight.take_larger(largest), "Packet too large")
        for size in self._flight.sent_bytes:
            self._meter.sent(size)
        if not self._persistent:
            self._aliases = TopicAliases(getattr(properties, "TopicAliasMaximum", 0))
        for request in self._requests.values():
            self._send_request(request)

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        code = None
        if flags.is_disconnect_packet_from_server:
            code = reason.value
            self._meter.received(packet_size.disconnect(reason=code, properties=self._packed(properties)))
        if self._online and self._close_by is None:
            self._hopeless = self._flight.broke(code) or self._hopeless
        words = self._refusal or (str(reason) if code is not None else f"connection lost: {reason}")
        self._lost(words, taken_over=code == TAKEN_OVER)

    def _lost(self, reason: str, *, taken_over: bool = False) -> None:
        """Note the end of a connection or of an attempt, once, and when to try again."""
        if not self._attempting:
            return
        now = time.monotonic()
        if self._online and now - self._connected_at > self._delay:
            self._attempts = 0  # it held longer than it took to wait for it
        self._attempts += 1
        self._delay = reconnect_delay(
            self._attempts, self._settings.reconnect_min, self._settings.reconnect_max, self._random
        )
        self._retry_at = now + self._delay
        self._attempting, self._online, self._refusal = False, False, None
        self._largest_packet = None
        self._unacknowledged.clear()
        if self._close_by is None:
            self._events.put(Disconnected(reason=reason, taken_over=taken_over))

    def _on_publish(
        self, _client: Client, _data: object, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        code = reason.value if self._v5 else 0
        self._meter.received(packet_size.puback(reason=code, properties=self._packed(properties)))
        publish = self._flight.acknowledge(mid)
        # Nobody has subscribed yet, but the broker keeps what is retained for those who will.
        nowhere = code == _NO_SUBSCRIBERS and not publish.retain
        if nowhere or code >= _FAILURE:
            self._events.put(PublishRefused(token=publish.token, reason=str(reason)))
        else:
            self._events.put(PublishAccepted(token=publish.token))

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            _log.warning("dropped a message with a topic that is not UTF-8")
            self._client.ack(message.mid, message.qos)
            return
        size = packet_size.publish(
            topic, len(message.payload), qos=message.qos, properties=self._packed(message.properties)
        )
        self._meter.received(size, payload=len(message.payload), topic=len(topic.encode()))
        acknowledge: Callable[[], None] = _nothing
        if message.qos:
            serial = next(self._serials)
            self._unacknowledged[serial] = message.mid
            acknowledge = partial(self._command, partial(self._acknowledge, serial))
        elif self._events.qsize() >= self._unread_limit:
            self._overflow += 1
            if (
                self._overflow.bit_count() == 1
            ):  # the first, and whenever there are twice as many: logs are disks, too
                _log.warning("dropped %d messages of QoS 0 so far, the last one to %s", self._overflow, topic)
            return
        self._events.put(
            Delivery(
                topic=topic,
                payload=bytes(message.payload),
                retained=message.retain,
                duplicate=message.dup,
                acknowledge=acknowledge,
            )
        )

    def _on_suback(
        self,
        _client: Client,
        _data: object,
        mid: int,
        reasons: list[ReasonCode],
        properties: Properties | None,
    ) -> None:
        self._meter.received(packet_size.suback(properties=self._packed(properties), codes=len(reasons)))
        for request in self._requests.values():
            if request.mid == mid:
                del self._requests[request.topic_filter]
                if request.wanted and reasons and reasons[0].is_failure:
                    self._events.put(
                        SubscriptionRefused(topic_filter=request.topic_filter, reason=str(reasons[0]))
                    )
                return

    # Small things.

    def _packed(self, properties: Properties | None) -> int:
        if not self._v5:
            return 0
        return 1 if properties is None else len(properties.pack())  # type: ignore[no-untyped-call]

    def _make_client(self) -> Client:
        settings = self._settings
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=None if self._v5 else not self._persistent,
            protocol=MQTTProtocolVersion.MQTTv5 if self._v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,  # `_attempt` does it
            manual_ack=True,
        )
        client.connect_timeout = settings.connect_timeout
        client.max_inflight_messages = 0  # `_push` keeps the window, which paho fixes before it knows CONNACK
        client.username_pw_set(settings.username, settings.password)
        if settings.tls:
            client.tls_set_context(_tls_context(settings, self._meter))
        properties, will_bytes = 0, 0
        if settings.will is not None:
            topic, payload = settings.will.topic, settings.will.payload
            client.will_set(topic, payload, qos=1, retain=settings.will.retain)
            will_bytes = packet_size.will(topic, len(payload), properties=int(self._v5))
        if self._v5:
            wishes = _properties(PacketTypes.CONNECT)
            wishes.SessionExpiryInterval = settings.session_expiry
            wishes.ReceiveMaximum = settings.receive_maximum
            if settings.maximum_packet_size is not None:
                wishes.MaximumPacketSize = settings.maximum_packet_size
            properties = self._packed(wishes)
            client.connect_async(
                settings.host,
                settings.port,
                settings.keepalive,
                clean_start=settings.clean_start,
                properties=wishes,
            )
        else:
            client.connect_async(settings.host, settings.port, settings.keepalive)
        self._connect_bytes = packet_size.connect(
            settings.client_id,
            properties=properties,
            will=will_bytes,
            username=settings.username,
            password=settings.password,
        )
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_suback
        client.on_unsubscribe = self._on_suback
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        # With this set paho only queues packets, and the loop alone writes them.
        client.on_socket_register_write = _ignore
        return client


def reconnect_delay(attempt: int, shortest: float, longest: float, generator: random.Random) -> float:
    """Seconds to wait before the next attempt: anything up to a ceiling that doubles, so that a fleet spreads.

    Args:
        attempt: 1 after the first failure.
        shortest: seconds, the floor.
        longest: seconds, the ceiling's ceiling.
        generator: the client's own.
    """
    return generator.uniform(shortest, min(longest, shortest * 2.0 ** min(attempt, 30)))


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def _nothing() -> None:
    """Acknowledge a QoS 0 message: there is nothing to do."""


def _ignore(_client: Client, _data: object, _sock: object) -> None:
    """Look at `want_write` instead, before each wait."""


def _tls_context(settings: MqttSettings, meter: Meter) -> ssl.SSLContext:
    class TidySocket(ssl.SSLSocket):
        """paho forgets the socket of a failed handshake without closing it."""

        def do_handshake(self, block: bool = False) -> None:
            try:
                super().do_handshake(block)
            except OSError:
                meter.failed(self)
                self.close()
                raise

    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise SettingError("ca_file", str(settings.ca_file), f"a readable PEM file: {error}") from error
    context.sslsocket_class = TidySocket
    if settings.cert_file is not None:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:
            raise SettingError(
                "cert_file", str(settings.cert_file), f"a readable PEM certificate with its key: {error}"
            ) from error
    return context
