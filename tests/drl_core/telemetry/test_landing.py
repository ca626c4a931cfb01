"""The landing zone: nothing acknowledged is lost or doubled, whoever is killed and when."""

import contextlib
import errno
import random
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from drl_assets.tables import continuity, transforms
from drl_assets.tables.episode_progress import EpisodeProgress
from drl_core.files import write_atomically
from drl_core.telemetry.event import DeadLetter, Event, Process
from drl_core.telemetry.landing import LandingError, LandingZone

WORKER = """
import sys
from pathlib import Path
from drl_core.telemetry.landing import LandingZone
from drl_core.telemetry.event import Event
zone, start = LandingZone(Path(sys.argv[1])), int(sys.argv[2])
for n in range(start, start + 100_000, 3):
    zone.land([Event(episode_id="e", step=n + i) for i in range(3)])
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
    if n % 2:
        zone.seal(max_segments=4)
    elif pending := zone.pending():
        zone.seal(pending.key, max_segments=4)
"""


def events(start: int, count: int = 3) -> list[Event]:
    return [Event(episode_id="e", step=start + i) for i in range(count)]


def landed(zone: LandingZone) -> list[int]:
    keys = zone.keys()
    return [e.step for key in keys for part in zone.read(key) for e in part]


@pytest.mark.property(4)
@pytest.mark.property(5)
def test_every_acknowledged_event_is_in_one_batch_after_kill_9(tmp_path: Path) -> None:
    rng, acknowledged = random.Random(0), list[int]()
    for round_ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(round_ * 100_000)],
            stdout=subprocess.PIPE,
            text=True,
        ) as worker:
            assert worker.stdout is not None
            first = worker.stdout.readline()  # it is at work: now at any moment
            killer = threading.Timer(rng.uniform(0, 0.15), worker.kill)
            killer.start()
            for line in (first, *worker.stdout):
                with contextlib.suppress(ValueError):  # a line that the kill cut off
                    acknowledged += range(int(line), int(line) + 3)
            killer.join()
        worker.wait(30)
    zone = LandingZone(tmp_path)
    while zone.seal(max_segments=1000):
        pass
    steps = landed(zone)
    assert len(acknowledged) >= 30
    assert set(acknowledged) <= set(steps)
    assert len(steps) == len(set(steps)), "an event is in two batches"
    assert not zone.waiting()

    # redelivering all of it, shuffled and twice, changes nothing
    keys = zone.keys()
    frame = transforms.telemetry_frame(part for key in keys for part in zone.read(key)).frame
    again = [Event(episode_id="e", step=n) for n in [*steps, *steps]]
    rng.shuffle(again)
    whole = transforms.telemetry_frame([again, [Event(episode_id="e", step=n) for n in steps]])
    assert whole.frame.equals(frame)
    assert whole.duplicates == 2 * len(steps)
    ranges = [(n, n + 1) for n in sorted(steps)]
    past = {("default", "e"): EpisodeProgress("default", "e", "k", ranges, [0.0] * 14)}
    kept, dropped = continuity.drop_seen(whole.frame, past)
    assert (len(kept), dropped) == (0, len(steps))


@pytest.mark.property(4)
@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_sealing_that_was_cut_off_is_finished_by_the_next_reader(
    tmp_path: Path, moved: int
) -> None:
    zone = LandingZone(tmp_path)
    names = [zone.land(events(n)).name for n in (0, 3)]
    batch = zone.seal()
    assert batch is not None
    for name in names[moved:]:  # back to where a kill after the manifest would have left them
        (tmp_path / "batches" / batch.key / name).rename(tmp_path / "segments" / name)
    again = LandingZone(tmp_path)
    assert again.seal() is None
    assert landed(again) == [0, 1, 2, 3, 4, 5]
    assert again.keys() == [batch.key]
    assert again.batch(batch.key) == batch


def test_batches_are_numbered_and_named_by_their_oldest_segment(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    assert zone.pending() is None
    assert zone.seal() is None
    keys = []
    for n in range(3):
        segment = zone.land(events(n * 3))
        assert zone.waiting() == [segment.name]
        pending = zone.pending()
        batch = zone.seal()
        assert batch is not None
        assert (batch.events, batch.segments) == (3, [segment])
        assert batch.content_hash == sha256(segment.sha256.encode()).hexdigest()
        assert batch.key == f"{n + 1:08d}-{sha256(segment.name.encode()).hexdigest()[:12]}"
        assert pending is not None
        assert (pending.key, pending.segments, pending.events) == (batch.key, [segment.name], 3)
        keys.append(batch.key)
    assert zone.keys() == keys
    with pytest.raises(KeyError, match="no batch"):
        zone.batch("00000009-abc")


def tree(root: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder with its inode and modification time."""
    return {path: (s.st_ino, s.st_mtime_ns) for path in root.rglob("*") if (s := path.stat())}


@pytest.mark.property(4)
def test_looking_at_the_pending_batch_changes_nothing_even_after_a_cut_off_sealing(
    tmp_path: Path,
) -> None:
    zone = LandingZone(tmp_path)
    first = zone.land(events(0)).name
    batch = zone.seal()
    assert batch is not None
    (tmp_path / "batches" / batch.key / first).rename(tmp_path / "segments" / first)
    waiting = zone.land(events(3)).name
    before = tree(tmp_path)
    pending = [zone.pending() for _ in range(2)]
    assert pending[0] == pending[1]
    assert pending[0] is not None
    assert pending[0].segments == zone.waiting() == [waiting]
    assert tree(tmp_path) == before


@pytest.mark.property(4)
def test_a_batch_takes_what_lands_until_it_is_sealed_under_its_key_and_nothing_after(
    tmp_path: Path,
) -> None:
    zone = LandingZone(tmp_path)
    zone.land(events(0))
    pending = zone.pending()
    assert pending is not None
    zone.land(events(3))
    later = zone.pending()
    assert later is not None
    assert later.key == pending.key
    batch = zone.seal(pending.key)
    assert batch is not None
    assert (batch.key, batch.events) == (pending.key, 6)
    zone.land(events(6))
    assert zone.seal(pending.key) == batch, "the run is started again"
    assert len(zone.waiting()) == 1
    assert zone.keys() == [batch.key]


@pytest.mark.property(4)
def test_a_sealing_that_was_killed_before_its_manifest_is_done_again_under_the_same_key(
    tmp_path: Path,
) -> None:
    zone = LandingZone(tmp_path)
    zone.land(events(0))
    pending = zone.pending()
    assert pending is not None
    (tmp_path / "batches" / pending.key).mkdir()
    (tmp_path / "batches" / pending.key / ".manifest.json.0.tmp").write_bytes(b"{")
    assert zone.pending() == pending
    batch = zone.seal(pending.key)
    assert batch is not None
    assert landed(zone) == [0, 1, 2]


def test_a_key_that_is_neither_sealed_nor_pending_is_refused(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    zone.land(events(0))
    first = zone.pending()
    assert first is not None
    zone.seal()
    for key in ("00000001-0123456789ab", "00000002-0123456789ab"):  # taken; nothing waits
        with pytest.raises(KeyError, match="no batch"):
            zone.seal(key)
    zone.land(events(3))
    with pytest.raises(KeyError, match="no batch"):
        zone.seal("00000001-0123456789ab")
    assert len(zone.waiting()) == 1


def test_several_sealers_give_each_segment_one_batch(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    for n in range(20):
        zone.land(events(n * 3))

    def seal() -> None:
        while LandingZone(tmp_path).seal(max_segments=3):
            pass

    threads = [threading.Thread(target=seal) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(landed(zone)) == list(range(60))


def test_a_changed_or_missing_segment_is_refused(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    zone.land(events(0))
    batch = zone.seal()
    assert batch is not None
    path = tmp_path / "batches" / batch.key / batch.segments[0].name
    path.write_bytes(path.read_bytes().replace(b'"step":1', b'"step":7'))
    with pytest.raises(LandingError, match="was changed"):
        list(zone.read(batch.key))
    zone.discard(batch.key)
    with pytest.raises(LandingError, match="cannot be read"):
        list(zone.read(batch.key))
    assert zone.batch(batch.key) == batch, "the manifest stays"


def test_no_events_make_no_segment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        LandingZone(tmp_path).land([])


def letter(n: int) -> DeadLetter:
    return DeadLetter(source="s", record=n, field="step", reason="bad", payload="x" * 1000)


@pytest.mark.property(3)
def test_a_dead_letter_that_was_cut_off_hides_no_other(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    zone.write_dead_letters([])
    assert zone.dead_letters() == []
    zone.write_dead_letters([letter(0), letter(1)])
    (path,) = (tmp_path / "dead_letters").iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    zone.write_dead_letters([letter(2)])
    first, cut, last = zone.dead_letters()
    assert (first, last) == (letter(0), letter(2))
    assert (cut.field, cut.record) == ("$", 1)
    assert "truncated" in cut.reason


FULL = """
import resource, signal, sys
from pathlib import Path
from drl_core.telemetry.landing import LandingError, LandingZone
from drl_core.files import write_atomically
from drl_core.telemetry.event import DeadLetter, Event
zone = LandingZone(Path(sys.argv[1]))
zone.land([Event(episode_id="e", step=0)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
letter = DeadLetter(source="s", record=1, field="step", reason="bad", payload="x" * 900)
for attempt in (
    lambda: zone.land([Event(episode_id="e", step=n) for n in range(1, 50)]),
    lambda: zone.seal(),
    lambda: zone.write_dead_letters([letter]),
):
    try:
        attempt()
    except LandingError as error:
        print(error.errno, error)
    else:
        print("no error")
"""


def test_a_disk_that_refuses_is_said_and_nothing_half_written_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stdout
    assert all(line.startswith(str(errno.EFBIG)) for line in said), done.stdout
    zone = LandingZone(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "batches").iterdir())
    assert len(zone.waiting()) == 1
    batch = zone.seal()
    assert batch is not None
    assert batch.key.startswith("00000001")
    assert landed(zone) == [0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_process_is_sanitised_before_it_is_stored(tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    zone.land([Event(episode_id="e", step=0, process=Process(image_path="/home/ann/x"))])
    (name,) = zone.waiting()
    assert b"ann" not in (tmp_path / "segments" / name).read_bytes()
