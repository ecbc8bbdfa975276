"""The exceptions of fedmq, split by whose fault it is.

A `LocalError` means that we, or the person who runs us, got something wrong: a bad setting, a file that
cannot be read. It may stop a process. A `RemoteError` means that bytes from the network are not what they
claim to be: it is caught where the bytes arrive, counted, and never stops a process (law 7).

Attributes come first and the message is built from them once. Refusals that belong to normal operation
(a stale update, a duplicate) are values, see `fedmq.types.Rejection`.
"""


class FedmqError(Exception):
    """Anything that fedmq raises on purpose."""


class LocalError(FedmqError):
    """We, or the person who runs us, did something wrong."""


class RemoteError(FedmqError):
    """A peer sent something wrong."""


class SettingError(LocalError):
    """A setting has a value that cannot be used.

    Attributes:
        name: the setting, as it is written in the file, the environment or the command line.
        value: what was given.
        allowed: what would be accepted.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(f"setting {name} = {value!r} cannot be used: {allowed}")


class LayoutError(LocalError):
    """Tensors do not fit the layout they are packed into or unpacked from."""


class CodecError(LocalError):
    """A codec or a pipeline of codecs is misspelt, misconfigured or given the wrong kind of input."""


class StoreError(LocalError):
    """The database on disk is damaged, locked, full or of another version; the message says what to do."""


class ModelFileError(LocalError):
    """A model file cannot be read, or is not a model."""


class TransportError(LocalError):
    """The transport was asked for something it cannot do."""


class PacketTooLargeError(TransportError):
    """A publish is larger than the broker accepts; refused here, because the broker would disconnect us.

    Attributes:
        topic: where it was to go.
        size: the packet's size in bytes.
        maximum: the broker's maximum packet size in bytes.
    """

    def __init__(self, topic: str, size: int, maximum: int) -> None:
        self.topic, self.size, self.maximum = topic, size, maximum
        super().__init__(
            f"a publish of {size} bytes to {topic} exceeds the broker's maximum packet of {maximum} bytes: "
            "lower chunk_bytes or raise max_packet_size in the broker's configuration"
        )


class DataError(LocalError):
    """Data that we read or fetch (a dataset, the log of a run) is missing, damaged or not what it claims to be.

    Attributes:
        source: the file, folder, address or package, with the line where there is one.
        reason: what is wrong with it and what to do.
    """

    def __init__(self, source: object, reason: str) -> None:
        self.source, self.reason = str(source), reason
        super().__init__(f"{source} {reason}")


class WireError(RemoteError):
    """Bytes from the network that are not a valid message.

    Attributes:
        what: which message or field was being read.
        reason: what is wrong with it.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what}: {reason}")
