"""Finding, recognising and importing files, real ones included, and surviving any bytes."""

import gzip
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sandbox_reports import cape_call, cape_report

from drl_assets import sources
from drl_assets.sources import NoEvidence
from drl_assets.sources.importer import ImportResult, import_telemetry, read_events
from drl_core.telemetry.event import DeadLetter, Event, Stage
from drl_core.telemetry.landing import LandingZone

Write = Callable[..., Path]
LINE = b'{"episode_id": 1, "step": 0}\n'


@pytest.mark.property(3)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=2000)
    | st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(
        st.sampled_from(
            [
                *(bytes([c]) for c in b'{}[]",:\\\n\x00'),
                b'{"behavior": {"processes": [{"calls": [{"api": "NtClose", "time": 1e9}',
                b'"malscore": ',
                b"1e999",
                b"-" + b"9" * 5000,
                b"\xff\xfe",
                b"timestamp,cpuIdle,ramUsed,iface0RX\n",
                b"100 1660632205.123456 openat(AT_FDCWD, ",
                LINE,
            ]
        ),
        max_size=30,
    ).map(b"".join),
    packed=st.sampled_from([0, 1, 8]),
)
@example(content=b"\x1f\x8b", packed=0)
@example(content=b'[{"a": "\\', packed=0)
def test_no_bytes_crash_any_reader(tmp_path: Path, content: bytes, packed: int) -> None:
    """packed: 0 plain, 1 gzip, more: a gzip without its last bytes."""
    raw = gzip.compress(content) if packed else content
    _read_as_everything(tmp_path / "anything", raw[:-packed] if packed > 1 else raw)


def _read_as_everything(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for format in ("auto", *sources.FORMATS):
        for item in sources.read(path, format=format):
            assert isinstance(item, Event | DeadLetter | NoEvidence)
            assert msgspec.json.encode(item)


@pytest.mark.property(3)
@pytest.mark.parametrize("level", [b"[", b'{"behavior":', b'{"a":['])
def test_no_depth_of_nesting_crashes_any_reader(tmp_path: Path, level: bytes) -> None:
    _read_as_everything(tmp_path / "bomb", level * 50_000)


def test_folders_are_walked_in_order_and_files_are_taken_as_given(write: Write) -> None:
    last, first = write("b.jsonl", LINE), write("a.jsonl", LINE)
    write(".hidden", LINE)
    folder = first.parent
    assert sources.find([folder]) == [first, last]
    assert sources.find([last, folder]) == [last, first]
    assert sources.find([folder / ".hidden"]) == [folder / ".hidden"]
    with pytest.raises(FileNotFoundError, match="absent"):
        sources.find([folder / "absent"])


def test_a_file_of_no_known_format_is_one_dead_letter_that_names_those_there_are(
    write: Write,
) -> None:
    (letter,) = sources.read(write("LICENSE.txt", "Permission is hereby granted ..."))
    assert isinstance(letter, DeadLetter)
    assert all(name in letter.reason for name in sources.FORMATS)


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'xml' is unknown, choose one of auto, cape"):
        sources.read(tmp_path / "absent", format="xml")


def test_an_import_lands_what_is_whole_and_buries_what_is_not(write: Write, tmp_path: Path) -> None:
    folder = write("a.jsonl", LINE + b"rubbish\n" + LINE.replace(b"0", b"1")).parent
    write("b.json", cape_report(cape_call("NtClose")))
    write("c.json", cape_report(behavior={}))
    write("README", "words")
    zone = LandingZone(tmp_path / ".zone")
    seen: list[tuple[int, int]] = []
    result = import_telemetry(
        [folder],
        zone,
        sandbox_id="s1",
        stage=Stage.NEGATIVE,
        progress=lambda *at: seen.append(at),
    )
    assert result == ImportResult(
        files=4, events=3, episodes=2, dead_letters=2, no_evidence=["c.json"], segments=1
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {letter.source for letter in zone.dead_letters()} == {"README", "a.jsonl"}
    batch = zone.seal()
    assert batch is not None
    landed = [event for events in zone.read(batch.key) for event in events]
    assert {(e.sandbox_id, e.stage) for e in landed} == {("s1", Stage.NEGATIVE)}
    assert [e.process.image_path for e in landed if e.process] == ["C:\\Users\\USER\\a.exe"]


def test_events_are_read_without_a_landing_zone(write: Write) -> None:
    path = write("a.jsonl", LINE)
    assert [e.key for e in read_events([path])] == [("default", "1", 0)]
    with pytest.raises(ValueError, match=r"no event in 1 file\(s\)"):
        read_events([write("empty.json", b"")])


def _episodes(zone: LandingZone) -> dict[tuple[str, str], list[Event]]:
    batch = zone.seal()
    assert batch is not None
    episodes = defaultdict(list)
    for events in zone.read(batch.key):
        for event in events:
            episodes[event.key[:2]].append(event)
    assert all([e.step for e in them] == list(range(len(them))) for them in episodes.values())
    return episodes


def test_every_real_cape_report_is_read(real_data: Path, tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    result = import_telemetry([real_data / "cape"], zone)
    assert (result.files, result.episodes, result.dead_letters) == (10, 8, 1)  # the licence
    assert [name[:8] for name in result.no_evidence] == ["77c96105"]  # the run that failed
    episodes = list(_episodes(zone).values())
    malicious = [them[0].attack_type for them in episodes if them[0].is_malicious]
    assert sorted(map(str, malicious)) == ["CobaltStrikeStager", "None", "QakBot", "SunCrypt"]
    assert all(them[0].is_malicious in (True, None) for them in episodes)
    qakbot = next(them for them in episodes if them[0].attack_type == "QakBot")
    assert sum(e.syscall_count or 0 for e in qakbot) > 26_000  # its calls, and those repeated
    assert any(e.code_injection_detected for e in qakbot)
    assert not any(e.code_injection_detected is None for e in qakbot)
    assert {e.bytes_sent for them in episodes for e in them} == {None}


def test_every_real_cuckoo_report_is_read(real_data: Path, tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    result = import_telemetry([real_data / "cuckoo"], zone, label="malicious")
    assert (result.files, result.episodes, result.dead_letters) == (9, 9, 0)
    assert not result.no_evidence
    calls = {
        them[0].artifact_sha256: sum(e.syscall_count or 0 for e in them)
        for them in _episodes(zone).values()
    }
    assert 6600 < sum(calls.values()) <= 6682
    assert all(calls.values())


def test_every_real_device_recording_is_read(real_data: Path, tmp_path: Path) -> None:
    zone = LandingZone(tmp_path)
    result = import_telemetry([real_data / "iot-mtd"], zone)
    assert (result.files, result.events, result.segments) == (51, 98_047, 2)
    assert [letter.field for letter in zone.dead_letters()] == ["format", "columns"]
    sessions = defaultdict(set)
    for (_, episode), them in _episodes(zone).items():
        assert 1 <= len(them) <= 50
        sessions[them[0].session_id].add(episode)
        assert them[0].is_malicious is not None
        assert all(e.window_s < 10 and 0 < (e.memory_usage or 0) < 1024 for e in them)
    assert len(sessions) == 50
