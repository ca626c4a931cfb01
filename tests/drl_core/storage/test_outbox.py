"""The outbox: in order, once, durable, shared, and every failure of the disk has one type."""

import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from drl_core.storage.outbox import Outbox, OutboxError


class OutboxMachine(RuleBasedStateMachine):
    """The outbox beside a plain list of what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "outbox.sqlite"
        self.outbox = Outbox(self.path)
        self.other = Outbox(self.path)
        self.waiting: list[tuple[str, str, bytes]] = []
        self.dead: list[tuple[str, str, bytes]] = []

    @rule(
        rows=st.lists(
            st.tuples(st.sampled_from("ab"), st.sampled_from("klmnop"), st.binary(max_size=20)),
            max_size=8,
        ),
        elsewhere=st.booleans(),
    )
    def append(self, rows: list[tuple[str, str, bytes]], elsewhere: bool) -> None:
        (self.other if elsewhere else self.outbox).append_all(rows)
        for row in rows:
            if row[:2] not in [one[:2] for one in self.waiting]:
                self.waiting.append(row)

    @rule(count=st.integers(0, 5))
    def remove_the_oldest(self, count: int) -> None:
        rows = self.outbox.peek(count) if count else []
        assert [(r.topic, r.key, r.payload) for r in rows] == self.waiting[:count]
        for _ in range(2):  # a second time changes nothing
            self.other.remove([row.sequence for row in rows])
        del self.waiting[:count]

    @rule()
    def set_the_oldest_aside(self) -> None:
        for row in self.outbox.peek(1):
            self.outbox.move_to_dead_letters(row.sequence, "refused")
            self.dead.append(self.waiting.pop(0))

    @rule()
    def put_back(self) -> None:
        assert self.outbox.requeue() == len(self.dead)
        for row in self.dead:
            if row[:2] not in [one[:2] for one in self.waiting]:
                self.waiting.append(row)
        self.dead = []

    @rule(rows=st.lists(st.binary(max_size=9), min_size=1, max_size=4))
    def die_before_the_commit(self, rows: list[bytes]) -> None:
        database = sqlite3.connect(self.path, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO outbox (topic, key, payload, added_at) VALUES ('lost', hex(?1), ?1, 0)"
            " ON CONFLICT DO NOTHING",
            [[row] for row in rows],
        )
        database.close()

    @rule(shrink=st.booleans())
    def open_anew(self, shrink: bool) -> None:
        if shrink:
            self.outbox.shrink()
        self.outbox.close()
        self.outbox = Outbox(self.path)

    @invariant()
    def holds_what_it_should(self) -> None:
        for box in (self.outbox, self.other):
            rows = box.peek(1000)
            assert [(r.topic, r.key, r.payload) for r in rows] == self.waiting
            sequences = [row.sequence for row in rows]
            assert sequences == sorted(set(sequences))
        letters = self.outbox.dead_letters()
        assert [(d.row.topic, d.row.key, d.row.payload) for d in letters] == self.dead
        assert self.outbox.depth() == len(self.waiting)
        assert self.outbox.dead_letter_count() == len(self.dead)
        assert self.outbox.depth("a") == sum(topic == "a" for topic, _, _ in self.waiting)
        assert (self.outbox.oldest_age_s() > 0) == bool(self.waiting)
        for topic, key, payload in self.waiting:
            found = self.other.find(topic, key)
            assert found is not None
            assert found.payload == payload
        found_all = [row.payload for row in self.outbox.iterate("a", limit=2)]
        assert found_all == [p for t, _, p in (*self.waiting, *self.dead) if t == "a"]

    def teardown(self) -> None:
        self.outbox.close()
        self.other.close()
        shutil.rmtree(self.folder)


TestOutboxHoldsWhatItShould = pytest.mark.property(43)(OutboxMachine.TestCase)
TestOutboxHoldsWhatItShould.settings = settings(
    max_examples=100, stateful_step_count=12, deadline=None
)

WRITER = """
import sys
from pathlib import Path
from drl_core.storage.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
n = int(sys.argv[2])
while True:
    outbox.append("t", [(f"{n}-{part}", b"x" * 100) for part in range(3)])
    print(n, flush=True)
    n += 1
"""


@pytest.mark.property(43)
def test_what_was_acknowledged_survives_kill_9_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    acknowledged: list[int] = []
    for _ in range(5):
        start = acknowledged[-1] + 2 if acknowledged else 0  # one may be written but not told
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(start)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(20)]
            os.kill(process.pid, signal.SIGKILL)
            told += [int(line) for line in process.stdout]
            process.wait()
        acknowledged += told
    keys = [row.key for row in Outbox(path).peek(100_000)]
    expected = [f"{n}-{part}" for n in acknowledged for part in range(3)]
    assert set(expected) <= set(keys)
    assert len(keys) == len(set(keys))
    numbers = [tuple(map(int, key.split("-"))) for key in keys]
    assert numbers == sorted(numbers), "order of appending"
    assert len(keys) % 3 == 0, "a transaction is whole"


def test_many_processes_and_threads_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"

    def fill(writer: int) -> None:
        box = Outbox(path)
        for n in range(20):
            box.append("t", [(f"{writer}-{n}", b"")])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(fill, range(6)))
    rows = Outbox(path).peek(1000)
    assert len(rows) == 120
    for writer in range(6):
        mine = [row.key for row in rows if row.key.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{n}" for n in range(20)]


def test_the_files_are_for_their_owner_alone_and_shrink_when_empty(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    box = Outbox(path)
    box.append("t", [(str(n), b"x" * 4000) for n in range(2000)])
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("outbox*")} == {0o600}
    box.remove([row.sequence for row in box.peek(2000)])
    box.shrink()
    assert sum(file.stat().st_size for file in tmp_path.glob("outbox*")) < 200_000
    assert box.oldest_age_s() == 0


def test_a_full_outbox_takes_nothing_more_until_there_is_room(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.sqlite", max_bytes=200_000)
    with pytest.raises(OutboxError) as full:
        box.append("t", [(str(n), b"x" * 1000) for n in range(1000)])
    assert full.value.reason == "SQLITE_FULL"
    assert box.depth() == 0
    box.append("t", [("fits", b"x" * 1000)])
    assert box.depth() == 1


def test_a_damaged_file_is_a_typed_error_and_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(OutboxError) as damaged:
        Outbox(path).append("t", [("k", b"")])
    assert damaged.value.reason == "SQLITE_NOTADB"
    assert path.read_bytes() == b"this is no database" * 500


def test_a_folder_that_cannot_be_made_is_a_typed_error_and_may_come_later(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    box = Outbox(tmp_path / "state" / "outbox.sqlite")
    with pytest.raises(OutboxError):
        box.append("t", [("k", b"")])
    (tmp_path / "state").unlink()
    box.append("t", [("k", b"")])
    assert box.depth() == 1
