"""The append log: whatever happens to the file, what was promised is there or the damage is named."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fedmq.broker import BrokerSettings
from fedmq.broker.core import BrokerCore
from fedmq.broker.decoder import Decoder
from fedmq.broker.errors import LogDamagedError, LogUnavailableError, ReasonCode
from fedmq.broker.log import MAGIC, AppendLog
from fedmq.broker.packets import Connect, Puback, Publish, Subscribe, Subscription, Unsubscribe, Version
from fedmq.broker.properties import Properties
from fedmq.broker.records import Record, RecordKind, decode_records, replay, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

START = len(MAGIC) + 8
KEPT = Properties(session_expiry=1000)


def open_log(path: Path, max_bytes: int = 1 << 30) -> AppendLog:
    """Opens a log."""
    return AppendLog(path, max_bytes=max_bytes)


def read_back(path: Path) -> list[Record]:
    """The records that a log holds."""
    log = open_log(path)
    records = list(log.records())
    log.close()
    return records


def record(number: int, size: int = 5) -> Record:
    """A record that can be told from others."""
    return Record(kind=RecordKind.DONE, client=f"client {number}", number=number, data=bytes(size))


def write(path: Path, commits: list[list[Record]], *, sync: bool = True) -> list[int]:
    """Writes one frame per list and returns the file's size after each."""
    log = open_log(path)
    sizes = []
    for records in commits:
        for one in records:
            log.append(one, sync=sync)
        log.commit()
        sizes.append(log.size)
    log.close()
    return sizes


COMMITS = [[record(1), record(2)], [record(3)], [record(4), record(5), record(6)]]


def test_records_come_back_as_they_were_written(tmp_path):
    """In their order, over any number of openings."""
    write(tmp_path / "log", COMMITS[:2])
    write(tmp_path / "log", COMMITS[2:])

    assert [record(number) for number in range(1, 7)] == read_back(tmp_path / "log")


def test_a_tail_torn_at_any_byte_is_cut_at_the_last_whole_frame(tmp_path):
    """No record is invented, none before the tear is lost, and the log takes new ones."""
    sizes = write(tmp_path / "whole", COMMITS)
    data = (tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        path = tmp_path / "torn"
        path.write_bytes(data[:length])
        whole = sum(size <= length for size in sizes)

        expected = [one for records in COMMITS[:whole] for one in records]
        assert expected == read_back(path)
        write(path, [[record(9)]])
        assert [*expected, record(9)] == read_back(path)


def test_a_tail_of_wrong_bytes_is_cut_off(tmp_path):
    """As a disk may leave it that lost power: the size is there, the contents are not."""
    sizes = write(tmp_path / "log", COMMITS)
    data = bytearray((tmp_path / "log").read_bytes())
    data[sizes[1] + 3 :] = bytes(len(data) - sizes[1] - 3)
    (tmp_path / "log").write_bytes(data)

    assert [record(1), record(2), record(3)] == read_back(tmp_path / "log")


def test_any_byte_that_changes_in_the_middle_is_reported(tmp_path):
    """Where it was promised, a wrong byte is damage; the error says where, and the file is left alone."""
    sizes = write(tmp_path / "log", COMMITS)
    data = (tmp_path / "log").read_bytes()
    for place in range(START, sizes[1]):
        changed = bytearray(data)
        changed[place] ^= 0x40
        path = tmp_path / "damaged"
        path.write_bytes(changed)
        with pytest.raises(LogDamagedError) as caught:
            open_log(path)

        assert caught.value.offset == (START if place < sizes[0] else sizes[0])
        assert bytes(changed) == path.read_bytes()


def test_frames_that_were_never_synced_may_be_torn_in_the_middle(tmp_path):
    """Nobody was promised them, so a hole among them is a torn tail and no damage."""
    sizes = write(tmp_path / "log", COMMITS, sync=False)
    data = bytearray((tmp_path / "log").read_bytes())
    data[sizes[0] + 5] ^= 1
    (tmp_path / "log").write_bytes(data)

    assert [record(1), record(2)] == read_back(tmp_path / "log")


def test_a_payload_that_looks_like_a_frame_is_not_taken_for_one(tmp_path):
    """A publisher who embeds another log's frames cannot make a torn tail look like damage."""
    sizes = write(tmp_path / "other", COMMITS)
    frame = (tmp_path / "other").read_bytes()[sizes[0] :]
    hostile = Record(kind=RecordKind.DONE, data=frame)
    write(tmp_path / "log", [[record(1)], [hostile]])
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data[:-1])

    assert [record(1)] == read_back(tmp_path / "log")


@pytest.mark.parametrize("content", [b"something else", b"fedmq broker log 9\n" + bytes(100)])
def test_a_file_that_is_no_log_is_left_alone(tmp_path, content):
    """A wrong path must not cost anybody a file."""
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(LogDamagedError, match="at byte 0"):
        open_log(tmp_path / "log")

    assert content == (tmp_path / "log").read_bytes()


def test_two_brokers_cannot_share_a_log(tmp_path):
    """The second is told so."""
    log = open_log(tmp_path / "log")
    with pytest.raises(LogUnavailableError, match="another broker"):
        open_log(tmp_path / "log")
    log.close()

    assert read_back(tmp_path / "log") == []


def test_compaction_leaves_only_what_it_was_given(tmp_path):
    """And the log goes on from there."""
    log = open_log(tmp_path / "log")
    for number in range(100):
        log.append(record(number, size=1000), sync=True)
        log.commit()
    before = log.size
    log.compact(iter([record(7), record(8)]))
    log.append(record(9))
    log.commit()
    log.close()

    assert log.size < before / 50
    assert [record(7), record(8), record(9)] == read_back(tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.lock"]


@pytest.mark.parametrize("step", ["rename", "fsync"])
def test_a_compaction_that_does_not_finish_leaves_the_old_log(tmp_path, monkeypatch, step):
    """Whether it fails or the process dies, what was there is there, and the sibling is not."""
    write(tmp_path / "log", COMMITS)
    log = open_log(tmp_path / "log")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "rename" else os, step, fail)
        with pytest.raises(LogUnavailableError, match="compaction failed"):
            log.compact(iter([record(9)]))
    log.append(record(7), sync=True)
    log.commit()
    log.close()
    (tmp_path / "log.new").write_bytes(b"left by a process that died before the rename")

    assert [record(number) for number in range(1, 8)] == read_back(tmp_path / "log")
    assert not (tmp_path / "log.new").exists()


def test_a_commit_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    """Half of a frame is cut off again, and only a compaction makes the log take more."""
    log = open_log(tmp_path / "log")
    log.append(record(1), sync=True)
    log.commit()
    real_write = os.write

    def short_write(descriptor: int, data: bytes) -> int:
        if len(data) <= 20:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real_write(descriptor, data[:20])

    log.append(record(2), sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short_write)
        with pytest.raises(LogUnavailableError, match="no space left"):
            log.commit()
    log.append(record(3), sync=True)
    log.commit()
    assert log.behind
    log.compact(iter([record(4)]))
    log.append(record(5), sync=True)
    log.commit()
    log.close()

    assert not log.behind
    assert [record(4), record(5)] == read_back(tmp_path / "log")


def test_a_frame_whose_sync_failed_does_not_come_back(tmp_path, monkeypatch):
    """Its publishes were refused, so a restart must not bring them."""
    log = open_log(tmp_path / "log")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    log.append(record(1), sync=True)
    log.commit()
    log.append(record(2), sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(LogUnavailableError, match="input/output error"):
            log.commit()
    log.close()

    assert [record(1)] == read_back(tmp_path / "log")


def test_a_record_that_makes_no_sense_is_damage(tmp_path):
    """Whole frames with other contents are refused, not guessed at."""
    with pytest.raises(ValueError, match="cut short"):
        list(decode_records(memoryview(b"\1\2\3")))
    with pytest.raises(ValueError, match="DONE record does not fit"):
        replay([record(1)], 0.0)


@given(st.binary(max_size=80))
def test_any_bytes_give_records_or_one_error(data):
    """ValueError and nothing else."""
    with contextlib.suppress(ValueError):
        assert all(isinstance(one, Record) for one in decode_records(memoryview(data)))


# The broker on its log.


class Logged:
    """A core on a log file that can be made anew from it at any time."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.path, self.now = path, 1_000.0
        self.settings = BrokerSettings(**{"sys_interval": 0, **settings})
        self.open()

    def open(self) -> None:
        self.log = open_log(self.path, self.settings.max_log_bytes)
        state = replay(self.log.records(), self.now)
        self.core = BrokerCore(self.settings, self.now, state=state, journal=self.log)

    def crash(self) -> None:
        self.log.close()
        self.open()

    def connect(self, name: str, version: Version = Version.V5, **fields: object) -> tuple[object, list]:
        channel = self.core.open(self.now)
        fields = {"clean_start": False, "properties": KEPT, **fields}
        return channel, self.send(channel, Connect(version=version, client_id=name, keep_alive=0, **fields))

    def send(self, channel: object, *packets: object) -> list:
        for packet in packets:
            self.core.receive(channel, packet, self.now)
        self.core.commit(self.now)
        return self.read(channel)

    def read(self, channel: object) -> list:
        data = b"".join(channel.take())
        self.core.take_dirty()
        return list(Decoder(1 << 28, channel.version).feed(data))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick(self.now)


def publish(number: int, topic: str = "t", **fields: object) -> Publish:
    """A publish of QoS 1 that can be told from others."""
    return Publish(topic=topic, payload=b"%d" % number, qos=1, packet_id=number, **fields)


def subscribe(*filters: str, **options: object) -> Subscribe:
    """A SUBSCRIBE with QoS 1."""
    return Subscribe(
        packet_id=1, subscriptions=tuple(Subscription(filter=one, **{"qos": 1, **options}) for one in filters)
    )


def test_everything_acknowledged_is_there_after_a_crash(tmp_path):
    """Session, subscriptions with options, queue, flight with its identifiers, retained messages."""
    broker = Logged(tmp_path / "log")
    reader, _ = broker.connect("reader", properties=Properties(session_expiry=1000, receive_maximum=2))
    broker.send(reader, subscribe("t", "gone"), subscribe("r/#", identifier=7, retain_as_published=True))
    broker.send(reader, Unsubscribe(packet_id=2, filters=("gone",)))
    writer, _ = broker.connect("writer")
    properties = Properties(message_expiry=100, content_type="x", user_properties=(("k", "v"),))
    broker.send(writer, *(publish(number) for number in (1, 2, 3, 4)))
    broker.send(writer, publish(5, "r/1", retain=True, properties=properties), publish(6, "gone"))
    sent = broker.read(reader)
    broker.send(reader, Puback(packet_id=sent[0].packet_id))
    broker.crash()
    broker.now += 40

    reader, [connack, *again] = broker.connect("reader")
    late, _ = broker.connect("late")
    retained = broker.send(late, subscribe("#"))[1:]

    assert connack.session_present
    assert [(bytes(one.payload), one.dup, one.packet_id) for one in again] == [
        (b"2", True, 2),
        (b"3", True, 3),
        (b"4", False, 4),
        (b"5", False, 5),
    ]
    assert (
        again[-1].properties.subscription_ids,
        again[-1].retain,
        again[-1].properties.message_expiry,
    ) == ((7,), True, 60)
    assert [(one.topic, bytes(one.payload), one.properties.user_properties) for one in retained] == [
        ("r/1", b"5", (("k", "v"),))
    ]


def test_what_is_over_stays_over(tmp_path):
    """Acknowledged messages, ended sessions and cleared retained messages do not come back."""
    broker = Logged(tmp_path / "log")
    reader, _ = broker.connect("reader")
    broker.send(reader, subscribe("t"))
    brief, _ = broker.connect("brief")
    broker.send(brief, subscribe("t"))
    broker.connect("brief", clean_start=True, properties=Properties())
    writer, _ = broker.connect("writer", clean_start=True, properties=Properties())
    broker.send(writer, publish(1), publish(2, "r", retain=True))
    broker.send(writer, Publish(topic="r", payload=b"", qos=1, packet_id=3, retain=True))
    for one in broker.read(reader):
        broker.send(reader, Puback(packet_id=one.packet_id))
    broker.crash()

    state = broker.core.state
    assert (
        list(state.sessions),
        state.stored_messages,
        len(state.retained),
        state.stored_bytes,
    ) == (["reader"], 0, 0, 0)


def test_the_puback_comes_after_the_disk(tmp_path, monkeypatch):
    """One sync for all publishes of a turn, and not one acknowledgement before it."""
    broker = Logged(tmp_path / "log")
    reader, _ = broker.connect("reader")
    broker.send(reader, subscribe("t"))
    writer, _ = broker.connect("writer")
    synced: list[int] = []
    real_sync: Callable[[int], None] = os.fdatasync

    def spy(descriptor: int) -> None:
        synced.append(len(writer.out) + len(reader.out))
        real_sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", spy)
    answers = broker.send(writer, *(publish(number) for number in range(1, 9)))

    assert synced == [0]
    assert [Puback(packet_id=number) for number in range(1, 9)] == answers


@pytest.mark.parametrize("version", [Version.V311, Version.V5])
def test_a_full_disk_refuses_publishes_and_the_broker_goes_on(tmp_path, monkeypatch, version):
    """0x97 or silence; what needs no disk still works; when there is room again, so does the rest."""
    broker = Logged(tmp_path / "log")
    reader, _ = broker.connect("reader")
    broker.send(reader, subscribe("t"))
    writer, _ = broker.connect("writer", version, properties=Properties())
    broker.send(writer, publish(1))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        refused = broker.send(writer, publish(2), publish(3))
        still = broker.send(writer, publish(4))
        elsewhere = broker.send(writer, publish(5, "nobody"))
        broker.tick(2)
        assert "no space left" in str(broker.core.dispatcher.log_error)
    broker.tick(60)
    accepted = broker.send(writer, publish(6))
    broker.crash()
    _, [_, *again] = broker.connect("reader")

    v5 = version == Version.V5
    quota, nobody = ReasonCode.QUOTA_EXCEEDED, ReasonCode.NO_MATCHING_SUBSCRIBERS
    assert ([Puback(packet_id=2, reason=quota), Puback(packet_id=3, reason=quota)] if v5 else []) == refused
    assert ([Puback(packet_id=4, reason=quota)] if v5 else []) == still
    assert [Puback(packet_id=5, reason=nobody if v5 else 0)] == elsewhere
    assert [Puback(packet_id=6)] == accepted
    assert [bytes(one.payload) for one in again] == [b"1", b"6"]


def test_a_log_that_is_mostly_dead_is_compacted(tmp_path):
    """It stays within a multiple of what is alive, however much has gone through."""
    broker = Logged(tmp_path / "log", log_compact_bytes=10_000)
    reader, _ = broker.connect("reader")
    broker.send(reader, subscribe("t"))
    writer, _ = broker.connect("writer")
    largest = 0
    for number in range(1, 200):
        broker.send(writer, Publish(topic="t", payload=bytes(1000), qos=1, packet_id=number))
        for one in broker.read(reader):
            if number % 50:
                broker.send(reader, Puback(packet_id=one.packet_id))
        broker.tick(1.5)
        largest = max(largest, broker.log.size)
    alive = broker.core.state.stored_messages
    broker.crash()

    assert largest < 20_000
    assert 3 == alive == broker.core.state.stored_messages


def test_the_log_has_a_largest_size(tmp_path):
    """Beyond it publishes are refused; when clients have taken theirs, there is room again."""
    broker = Logged(tmp_path / "log", max_log_bytes=6_000, log_compact_bytes=100_000)
    reader, _ = broker.connect("reader")
    broker.send(reader, subscribe("t"))
    writer, _ = broker.connect("writer", properties=Properties())

    def offer(number: int) -> int:
        return broker.send(writer, Publish(topic="t", payload=bytes(1000), qos=1, packet_id=number))[0].reason

    first = [offer(number) for number in range(1, 8)]
    for one in broker.read(reader):
        broker.send(reader, Puback(packet_id=one.packet_id))
    broker.tick(100)

    assert first == [0, 0, 0, 0, 0, 0x97, 0x97]
    assert offer(9) == 0
    assert broker.log.size <= 6_000


steps = st.lists(
    st.sampled_from(
        ["publish", "retain", "clear", "ack", "resubscribe", "unsubscribe", "reconnect", "tick", "compact"]
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(steps=steps)
def test_recovery_equals_what_was_live(tmp_path_factory, steps):
    """After any history, the state made from the log is the state that the process had."""
    broker = Logged(tmp_path_factory.mktemp("log") / "log")
    reader, found = broker.connect("reader", properties=Properties(session_expiry=1000, receive_maximum=2))
    broker.send(reader, subscribe("t/#"))
    writer, _ = broker.connect("writer", properties=Properties())
    under_way: list[int] = []
    for number, step in enumerate(steps, start=1):
        match step:
            case "publish" | "retain":
                broker.send(writer, publish(number, f"t/{number % 3}", retain=step == "retain"))
            case "clear":
                broker.send(
                    writer, Publish(topic=f"t/{number % 3}", payload=b"", qos=1, packet_id=1, retain=True)
                )
            case "ack" if under_way:
                found = broker.send(reader, Puback(packet_id=under_way.pop(number % len(under_way))))
            case "resubscribe":
                found = broker.send(reader, subscribe("t/#", identifier=number))
            case "unsubscribe":
                found = broker.send(reader, Unsubscribe(packet_id=1, filters=("t/#",)))
            case "reconnect":
                broker.core.lost(reader, broker.now)
                under_way = []
                reader, found = broker.connect(
                    "reader", properties=Properties(session_expiry=1000, receive_maximum=2)
                )
            case "tick":
                broker.tick(2)
            case "compact":
                broker.log.compact(snapshot(broker.core.state, broker.now))
        found += broker.read(reader)
        under_way += [one.packet_id for one in found if isinstance(one, Publish) and one.qos]
        found = []
    live = summary(broker.core)
    broker.crash()

    assert live == summary(broker.core)
    broker.log.close()


def summary(core: BrokerCore) -> object:
    """What of a state outlives the process."""
    return (
        {
            name: (
                session.expiry,
                session.subscriptions,
                [
                    (one.packet_id, bytes(one.message.payload), one.identifiers)
                    for one in session.inflight.values()
                ],
                [(bytes(one.message.payload), one.retain, one.identifiers) for one in session.queue],
            )
            for name, session in core.state.sessions.items()
            if session.persistent
        },
        {one.topic: bytes(one.payload) for one in core.state.retained.values()},
        core.state.stored_messages,
        core.state.stored_bytes,
    )
