"""How many bytes an MQTT packet takes on the wire.

What lives here: the arithmetic of packet sizes (MQTT 5 sections 2.1 and 3.1 to 3.14), by which both transports
refuse what is larger than the broker takes, and count their `Traffic` where nobody measures it. What must not:
encoding and decoding, which is paho's business.

`properties` is everywhere the size of the property section with its length prefix: 0 on MQTT 3.1.1, which has
none, 1 on MQTT 5 when it is empty.
"""

LARGEST_REMAINING = 268_435_455  # MQTT 5 section 1.5.5: four bytes of seven bits
LARGEST_PACKET = 1 + 4 + LARGEST_REMAINING
MESSAGE_EXPIRY_PROPERTY = 5  # MQTT 5 section 3.3.2.3.3: one byte of identifier, four of seconds
TOPIC_ALIAS_PROPERTY = 3  # MQTT 5 section 3.3.2.3.4: one byte of identifier, two of number


def packet(remaining: int) -> int:
    """Size of a packet whose variable header and payload take `remaining` bytes."""
    length_bytes = 1
    while remaining >> (7 * length_bytes):
        length_bytes += 1
    return 1 + length_bytes + remaining


def text(value: str) -> int:
    """Size of a length-prefixed UTF-8 string (MQTT 5 section 1.5.4)."""
    return 2 + len(value.encode())


def connect(
    client_id: str,
    *,
    properties: int,
    will: int = 0,
    username: str | None = None,
    password: str | None = None,
) -> int:
    """Size of a CONNECT; `will` is what the will's properties, topic and payload take together."""
    credentials = sum(text(value) for value in (username, password) if value is not None)
    return packet(len(b"\0\4MQTT") + 1 + 1 + 2 + properties + text(client_id) + will + credentials)


def will(topic: str, payload_bytes: int, *, properties: int) -> int:
    """What a will takes inside a CONNECT (MQTT 5 section 3.1.3)."""
    return properties + text(topic) + 2 + payload_bytes


def connack(*, properties: int) -> int:
    """Size of a CONNACK."""
    return packet(2 + properties)


def publish(topic: str, payload_bytes: int, *, qos: int = 1, properties: int) -> int:
    """Size of a PUBLISH."""
    return packet(text(topic) + (2 if qos else 0) + properties + payload_bytes)


def puback(*, reason: int, properties: int) -> int:
    """Size of a PUBACK. Success without properties leaves both out (MQTT 5 section 3.4.2.1)."""
    if properties <= 1:
        return packet(2 + (1 if reason else 0))
    return packet(2 + 1 + properties)


def subscribe(topic_filter: str, *, properties: int) -> int:
    """Size of a SUBSCRIBE to one filter."""
    return packet(2 + properties + text(topic_filter) + 1)


def unsubscribe(topic_filter: str, *, properties: int) -> int:
    """Size of an UNSUBSCRIBE from one filter."""
    return packet(2 + properties + text(topic_filter))


def suback(*, properties: int, codes: int = 1) -> int:
    """Size of a SUBACK, and of an UNSUBACK (which has no codes on MQTT 3.1.1)."""
    return packet(2 + properties + codes)


def disconnect(*, reason: int, properties: int) -> int:
    """Size of a DISCONNECT. A normal one, without properties, is two bytes (MQTT 5 section 3.14.2.1)."""
    if properties <= 1:
        return packet(1 if reason else 0)
    return packet(1 + properties)
