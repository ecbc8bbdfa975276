"""The exceptions of the broker folder, and the reason codes that they carry.

Here live the MQTT 5 reason codes (specification, section 2.4), their translation to the return codes of
3.1.1, and every exception that this folder raises on purpose. Attributes come first and the message is built
from them once.

A `ProtocolError` is the peer's fault and ends one connection; every other error is ours or the operator's.
"""

from enum import IntEnum
from pathlib import Path
from typing import Final


class ReasonCode(IntEnum):
    """The reason codes that this broker sends or understands (MQTT 5, section 2.4)."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    QOS_NOT_SUPPORTED = 0x9B


_RETURN_CODES: Final[dict[int, int]] = {
    ReasonCode.SUCCESS: 0,
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: 1,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: 2,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: 4,
    ReasonCode.NOT_AUTHORIZED: 5,
}
_SERVER_UNAVAILABLE: Final = 3


def return_code(reason: int) -> int:
    """The CONNACK return code of MQTT 3.1.1 (section 3.2.2.3) that comes nearest to an MQTT 5 reason."""
    return _RETURN_CODES.get(reason, _SERVER_UNAVAILABLE)


class BrokerError(Exception):
    """Anything that the broker folder raises on purpose."""


class ProtocolError(BrokerError):
    """Bytes or packets that break the protocol; the connection they came from has to end.

    Attributes:
        reason_code: what a DISCONNECT or a CONNACK of MQTT 5 says about it.
        detail: what was wrong, with the value.
    """

    def __init__(self, reason_code: ReasonCode, detail: str) -> None:
        self.reason_code, self.detail = reason_code, detail
        super().__init__(f"{detail} (reason code 0x{reason_code:02X})")


class BrokerSettingError(BrokerError):
    """A setting of the broker cannot be used.

    Attributes:
        name: the field of `BrokerSettings`.
        value: what was given.
        allowed: what would be accepted.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(f"broker setting {name} = {value!r} cannot be used: it must be {allowed}")


class LogUnavailableError(BrokerError):
    """The log cannot be opened or written; the records of a commit that failed are not in it.

    Attributes:
        path: the log.
        why: what the operating system said, or which bound was reached.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"the log {path} cannot be written: {why}")


class LogDamagedError(BrokerError):
    """The log holds bytes that were durable once and are no longer what was written, or is no log at all.

    Attributes:
        path: the log.
        offset: where the first bad byte range begins.
        what: what is wrong there.
    """

    def __init__(self, path: Path, offset: int, what: str) -> None:
        self.path, self.offset, self.what = path, offset, what
        super().__init__(
            f"the log {path} is damaged at byte {offset}: {what}. Restore it from a copy, or move it away "
            "to start with no sessions and no retained messages"
        )


class MosquittoError(BrokerError):
    """A mosquitto that we control did not do what it was asked to.

    Attributes:
        what: what was tried.
        log: the last lines of its log.
    """

    def __init__(self, what: str, log: str) -> None:
        self.what, self.log = what, log
        super().__init__(f"{what}; its log ends with:\n{log}" if log else what)


class MosquittoMissingError(BrokerError):
    """There is no mosquitto binary here.

    Attributes:
        searched: the folders that were looked into.
    """

    def __init__(self, searched: tuple[str, ...]) -> None:
        self.searched = searched
        super().__init__(
            f"no mosquitto binary in {', '.join(searched)}: install it with `apt-get install mosquitto` "
            "(Debian, Ubuntu) or `brew install mosquitto` (macOS), or use the embedded broker"
        )
