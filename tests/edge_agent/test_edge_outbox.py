"""The outbox: what a power cut, a full disk, a damaged file and a second process leave of it."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fedmq.aggregator.ledger import fits
from fedmq.edge_agent.outbox import Outbox

from fedmq.errors import StoreError
from fedmq.types import ParamVector
from fedmq.wire import MAX_RECEIPT_ENTRIES

ONE, OTHER = b"layout-1", b"layout-2"


def residual(value: float, size: int = 8) -> ParamVector:
    """A residual that tells which update left it."""
    return np.full(size, value, np.float32)


def put(outbox: Outbox, message: bytes = b"message") -> int:
    """An update that leaves its own number behind."""
    return outbox.put(message, residual=residual(outbox.next_seq), fingerprint=ONE, created=0.0)


def left_behind(outbox: Outbox, fingerprint: bytes = ONE) -> list[float] | None:
    """The residual's values."""
    found = outbox.residual(fingerprint)
    return None if found is None else sorted(set(found.tolist()))


def test_an_update_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    """With its number and its bytes."""
    outbox = Outbox(tmp_path / "outbox.db")
    seqs = [put(outbox, b"one"), put(outbox, b"two")]

    assert [1, 2] == seqs == outbox.pending()
    assert b"two" == outbox.get(2).message
    outbox.forget(1)
    assert [2] == outbox.pending()
    assert (1, 2, 3) == (len(outbox), outbox.floor, outbox.next_seq)
    assert 2 in outbox
    assert 1 not in outbox


def test_everything_survives_a_reopen(tmp_path: Path) -> None:
    """Epoch, numbering, updates, floor and residual; a number is never used again."""
    with_outbox = Outbox(tmp_path / "outbox.db")
    for message in (b"one", b"two", b"three"):
        put(with_outbox, message)
    with_outbox.forget(1)
    with_outbox.forget(3)
    epoch = with_outbox.epoch
    with_outbox.close()
    again = Outbox(tmp_path / "outbox.db")

    assert epoch == again.epoch
    assert [2] == again.pending()
    assert (2, 4) == (again.floor, again.next_seq)
    assert [3.0] == left_behind(again)
    again.forget(2)
    again.close()
    empty = Outbox(tmp_path / "outbox.db")
    assert (4, 4) == (empty.floor, empty.next_seq)


def test_a_new_file_is_a_new_epoch(tmp_path: Path) -> None:
    """A device that lost its state counts from 1 again, under another name."""
    epochs = set()
    for index in range(5):
        outbox = Outbox(tmp_path / f"{index}" / "outbox.db")
        epochs.add(outbox.epoch)
        assert outbox.next_seq == 1

    assert 5 == len(epochs)
    assert all(0 < epoch < 2**63 for epoch in epochs)


def test_an_empty_outbox_has_no_residual(tmp_path: Path) -> None:
    """Nothing was dropped yet."""
    assert left_behind(Outbox(tmp_path / "outbox.db")) is None


def test_a_residual_belongs_to_one_layout(tmp_path: Path) -> None:
    """Another model's residual is not offered, and the next update replaces it."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)

    assert left_behind(outbox, OTHER) is None
    outbox.put(b"", residual=residual(9.0), fingerprint=OTHER, created=0.0)
    assert left_behind(outbox, ONE) is None
    assert [9.0] == left_behind(outbox, OTHER)


def test_a_residual_is_a_copy(tmp_path: Path) -> None:
    """Whoever adds to it changes nothing in here."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)
    found = outbox.residual(ONE)
    assert found is not None
    found += 1

    assert [1.0] == left_behind(outbox)


def test_giving_up_takes_the_update_and_leaves_the_residual(tmp_path: Path) -> None:
    """In one step."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)
    outbox.give_up(1, residual=residual(5.0), fingerprint=ONE)

    assert [] == outbox.pending()
    assert [5.0] == left_behind(outbox)


def test_it_is_full_by_number_or_by_bytes(tmp_path: Path) -> None:
    """Whichever bound comes first; a receipt makes room again."""
    by_number = Outbox(tmp_path / "a.db", max_updates=2)
    by_bytes = Outbox(tmp_path / "b.db", max_bytes=10)
    for outbox in (by_number, by_bytes):
        seen = []
        for step in (put, put, lambda outbox: outbox.forget(1)):
            step(outbox)
            seen.append(outbox.is_full)

        assert [False, True, False] == seen


def test_it_never_holds_more_than_a_receipt_can_settle(tmp_path: Path) -> None:
    """Whatever the setting says."""
    outbox = Outbox(tmp_path / "outbox.db", max_updates=10**6)
    seen = []
    for held in (MAX_RECEIPT_ENTRIES - 1, MAX_RECEIPT_ENTRIES):
        outbox._sizes = dict.fromkeys(range(1, held + 1), 1)
        seen.append(outbox.is_full)

    assert [False, True] == seen


def test_it_never_spans_more_than_a_receipt_can_settle(tmp_path: Path) -> None:
    """One update that is never settled holds up the rest in time: later, the aggregator would drop them for ever."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)
    outbox.skip_to(MAX_RECEIPT_ENTRIES)  # all others were made and settled meanwhile
    before = outbox.is_full, fits(outbox.next_seq, outbox.floor)
    outbox.forget(put(outbox))
    after = outbox.is_full, fits(outbox.next_seq, outbox.floor)
    outbox.forget(1)

    assert (False, True) == before
    assert (True, False) == after
    assert not outbox.is_full


def use(outbox: Outbox, chance: random.Random, size: int) -> int:
    """Fill it with updates of all sizes and settle some in any order, several times; how often the disk was full."""
    left, refused = residual(0.0, size), 0
    for share in (0.3, 0.1, 0.6, 0.3, 1.0):
        try:
            while not outbox.is_full:
                message = bytes(int(10 ** chance.uniform(3, 5.6)))
                outbox.put(message, residual=left, fingerprint=ONE, created=0.0)
        except StoreError as error:
            if "No space left" not in str(error):
                raise
            refused += 1
        for seq in chance.sample(outbox.pending(), round(share * len(outbox))):
            if chance.random() < 0.5:
                outbox.forget(seq)
            else:
                outbox.give_up(seq, residual=left, fingerprint=ONE)
    return refused


@pytest.mark.parametrize("seed", range(6))
def test_it_leaves_room_on_its_disk_for_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever is put and settled, the files of a full outbox never grow beyond a disk of 4 MB."""
    folder, disk, sizes = tmp_path / "home", 4 * 2**20, []

    def room(_: Path) -> SimpleNamespace:
        sizes.append(
            sum(path.stat().st_size for path in folder.iterdir())
        )  # the files do not shrink between puts
        return SimpleNamespace(f_bavail=disk - sizes[-1], f_frsize=1)

    monkeypatch.setattr(os, "statvfs", room)
    outbox = Outbox(folder / "outbox.db", max_updates=MAX_RECEIPT_ENTRIES)
    refused = use(outbox, random.Random(seed), 101_770)
    room(folder)
    outbox.close()

    assert 5 == refused
    assert disk // 2 < max(sizes) <= disk


def test_every_receipt_finds_room_on_a_disk_that_its_updates_have_filled(tmp_path: Path) -> None:
    """On a real file system of 4 MB, in a namespace of its own."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=4m tmpfs "$0" || exit 77; exec "$@"'
    script = f"""
import random, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_edge_outbox import Outbox, use
outbox = Outbox(Path({str(disk)!r}) / "outbox.db", max_updates=256)
print(sum(use(outbox, random.Random(seed), 101_770) for seed in range(4)))
"""
    command = [
        unshare,
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        mount,
        str(disk),
        sys.executable,
        "-c",
        script,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")

    assert 0 == done.returncode, done.stderr
    assert "20\n" == done.stdout


def test_an_update_that_is_not_there_is_a_store_error(tmp_path: Path) -> None:
    """With its number and the file's name."""
    with pytest.raises(StoreError, match=r"outbox\.db holds no update 7"):
        Outbox(tmp_path / "outbox.db").get(7)


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """The update is not half there: its number is free, the residual is the one before."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)
    outbox._db.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead

    with pytest.raises(StoreError, match=r"outbox\.db: cannot write: .*full.*Free some space"):
        outbox.put(bytes(100_000), residual=residual(2.0, 100_000), fingerprint=ONE, created=0.0)
    assert [1] == outbox.pending()
    assert 2 == outbox.next_seq
    assert [1.0] == left_behind(outbox)
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    assert 2 == put(outbox)


def test_a_disk_that_takes_no_write_keeps_the_update(tmp_path: Path) -> None:
    """What cannot be deleted on the disk is not forgotten in memory either."""
    outbox = Outbox(tmp_path / "outbox.db")
    put(outbox)
    outbox._db.execute("PRAGMA query_only = ON")

    with pytest.raises(StoreError, match="cannot write"):
        outbox.forget(1)
    with pytest.raises(StoreError, match="cannot write"):
        outbox.give_up(1, residual=residual(0.0), fingerprint=ONE)
    assert [1] == outbox.pending()
    assert [1.0] == left_behind(outbox)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database at all, but long enough to be looked at" * 50, "damaged: keep a copy"),
        (b"SQLite format 3\0" + bytes(84), "damaged|agent's outbox"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """By a message that says what to do; the file is left as it is."""
    path = tmp_path / "outbox.db"
    path.write_bytes(content)

    with pytest.raises(StoreError, match=message):
        Outbox(path)
    assert content == path.read_bytes()


def test_a_damaged_page_is_refused_and_the_file_can_be_opened_again(tmp_path: Path) -> None:
    """The lock goes with the failed attempt: the second one reports the damage, too."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    for _ in range(20):
        put(outbox, bytes(3000))
    outbox.close()
    content = bytearray(path.read_bytes())
    content[4096:] = np.random.default_rng(0).bytes(len(content) - 4096)
    path.write_bytes(content)

    for _ in range(2):
        with pytest.raises(StoreError, match=r"malformed|not a database"):
            Outbox(path)


def test_another_kind_of_database_is_refused(tmp_path: Path) -> None:
    """The aggregator's store, for instance, given as the outbox."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    outbox._db.execute("PRAGMA application_id = 1")
    outbox.close()

    with pytest.raises(StoreError, match="is no agent's outbox of fedmq"):
        Outbox(path)


def test_a_later_release_s_file_is_refused(tmp_path: Path) -> None:
    """Rather than misread."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    outbox._db.execute("PRAGMA user_version = 99")
    outbox.close()

    with pytest.raises(StoreError, match="schema 99, this release reads schema 1"):
        Outbox(path)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Two agents with one outbox would use each other's numbers."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    script = (
        f"from pathlib import Path; from fedmq.edge_agent.outbox import Outbox; Outbox(Path({str(path)!r}))"
    )

    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "in use by another process: stop it first, or use another agent's outbox" in second.stderr
    outbox.close()
    third = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 0 == third.returncode, third.stderr


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from fedmq.edge_agent.outbox import Outbox

ACTIONS = {
    "put": lambda box: box.put(
        b"third" * 5000, residual=np.full(50_000, 3, np.float32), fingerprint=b"layout-1", created=0.0
    ),
    "forget": lambda box: box.forget(1),
    "give_up": lambda box: box.give_up(1, residual=np.full(50_000, 4, np.float32), fingerprint=b"layout-1"),
}

def killed(path, action, statement):
    box = Outbox(path)
    for number in (1, 2):
        box.put(b"%d" % number, residual=np.full(50_000, number, np.float32), fingerprint=b"layout-1", created=0.0)
    count = 0
    def trace(sql):
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)
    box._db.set_trace_callback(trace)
    ACTIONS[action](box)
    os.kill(os.getpid(), signal.SIGKILL)  # after the commit

for action in ACTIONS:
    for statement in range(1, 12):
        child = os.fork()
        if not child:
            killed(Path(sys.argv[1]) / f"{action}-{statement}.db", action, statement)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
"""


def test_a_kill_leaves_all_of_a_transaction_or_nothing(tmp_path: Path) -> None:
    """SIGKILL before each statement of each transaction, and after the last.

    A number never goes without its update and its residual, and an update never goes without its content's return.
    """
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=True)
    seen = set()
    for path in sorted(tmp_path.glob("*.db")):
        outbox = Outbox(path)
        action = path.stem.split("-")[0]
        state = (outbox.pending(), outbox.next_seq, left_behind(outbox))
        seen.add((action, repr(state)))
        before = ([1, 2], 3, [2.0])
        after = {
            "put": ([1, 2, 3], 4, [3.0]),
            "forget": ([2], 3, [2.0]),
            "give_up": ([2], 3, [4.0]),
        }[action]
        assert state in (before, after), path
        if state == after and action == "put":
            assert b"third" * 5000 == outbox.get(3).message
        outbox.close()

    assert 6 == len(seen)  # both outcomes of each action have occurred


def test_a_kill_between_transactions_loses_nothing(tmp_path: Path) -> None:
    """Another process works as fast as it can; whatever it has told of is there."""
    script = """
import sys
from pathlib import Path
import numpy as np
from fedmq.edge_agent.outbox import Outbox
box = Outbox(Path(sys.argv[1]))
while True:
    seq = box.put(b"x" * 1000, residual=np.full(8, box.next_seq, np.float32), fingerprint=b"layout-1", created=0.0)
    if len(box) > 5:
        box.forget(box.floor)
    print(seq, flush=True)
"""
    path = tmp_path / "outbox.db"
    told = 0
    for lines in (2, 20):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            for _ in range(lines):
                told = int(worker.stdout.readline())
            worker.send_signal(signal.SIGKILL)
        outbox = Outbox(path)
        newest = outbox.next_seq - 1
        assert told <= newest
        assert [float(newest)] == left_behind(outbox)
        assert outbox.pending() == list(range(outbox.floor, newest + 1))
        outbox.close()
