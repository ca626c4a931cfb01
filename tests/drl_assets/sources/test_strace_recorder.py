"""The recorder: real programs under strace, label, time limit, errors that say what to do."""

import gzip
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from drl_assets.sources.strace import recorder
from drl_assets.sources.strace.recorder import Label, RecordingError, record
from drl_core.telemetry.event import Event, Stage, TelemetryError, parse_lines

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"
)


def read(path: Path) -> list[Event]:
    content = path.read_bytes()
    events, dead = parse_lines(gzip.decompress(content) if path.suffix == ".gz" else content)
    assert dead == []
    return events


@needs_strace
def test_a_program_becomes_one_labelled_episode(tmp_path: Path) -> None:
    program = "import time; open('made', 'w').write('x'); time.sleep(1.1)"
    result = record(
        [sys.executable, "-c", program],
        tmp_path / "out.jsonl.gz",
        window_s=0.5,
        sandbox_id="box",
        stage=Stage.NEGATIVE,
        label=Label(is_malicious=True, severity=0.5, attack_type="test"),
        session_id="family",
        cwd=tmp_path,
        quiet=True,
    )
    events = read(result.path)
    assert (result.ended, result.exit_status, result.refused) == (True, 0, ())
    assert result.events == len(events) >= 3
    assert [event.step for event in events] == list(range(len(events)))
    assert [event.episode_end for event in events] == [False] * (len(events) - 1) + [True]
    assert {event.episode_id for event in events} == {result.episode_id}
    assert {(e.sandbox_id, e.stage, e.session_id, e.window_s) for e in events} == {
        ("box", Stage.NEGATIVE, "family", 0.5)
    }
    assert {(e.is_malicious, e.severity, e.attack_type) for e in events} == {(True, 0.5, "test")}
    assert len({event.artifact_sha256 for event in events} - {None}) == 1
    assert sum(event.file_write_count or 0 for event in events) >= 1
    assert (tmp_path / "made").read_text() == "x"


@needs_strace
def test_cpu_and_memory_of_the_whole_tree_are_measured(tmp_path: Path) -> None:
    burn = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    busy = "x = bytearray(64 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\n"
    busy += "for i in range(20_000_000): pass"
    result = record([sys.executable, "-c", burn, busy], tmp_path / "out.jsonl", quiet=True)
    events = read(result.path)
    assert max(event.memory_usage or 0 for event in events) > 64
    assert max(event.cpu_usage or 0 for event in events) > 20
    assert not any(event.is_malicious is not None for event in events)


@needs_strace
def test_the_time_limit_kills_the_whole_tree_and_ends_only_the_record(tmp_path: Path) -> None:
    script = "setsid sleep 987.5 & (sleep 986.5 &) ; sleep 985.5"
    result = record(["bash", "-c", script], tmp_path / "out.jsonl", timeout_s=1.0, quiet=True)
    assert result.ended is False
    assert not any(event.episode_end for event in read(result.path))
    time.sleep(0.1)
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if {"987.5", "986.5", "985.5"} & set(process.info["cmdline"] or [])
    ]
    assert left == []


@needs_strace
def test_a_failing_program_is_recorded_with_its_status(tmp_path: Path) -> None:
    result = record(["sh", "-c", "exit 7"], tmp_path / "out.jsonl")
    assert (result.exit_status, result.ended) == (7, True)
    assert read(result.path)[-1].episode_end is True


def test_without_strace_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecordingError, match="apt-get install strace"):
        record([sys.executable], tmp_path / "out.jsonl")


@needs_strace
@pytest.mark.parametrize("command", [[], ["no-such-program"], ["/etc/passwd"]])
def test_a_program_that_cannot_run_is_an_error_and_leaves_no_file(
    tmp_path: Path, command: list[str]
) -> None:
    with pytest.raises(RecordingError):
        record(command, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_options_out_of_range_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="window_s"):
        record(["true"], tmp_path / "out.jsonl", window_s=0.1)
    with pytest.raises(ValueError, match=r"out: out\.csv"):
        record(["true"], tmp_path / "out.csv")


@needs_strace
def test_an_invalid_id_or_label_is_refused_before_anything_runs(tmp_path: Path) -> None:
    command = ["touch", str(tmp_path / "ran")]
    with pytest.raises(TelemetryError, match="sandbox_id"):
        record(command, tmp_path / "out.jsonl", sandbox_id="no spaces")
    with pytest.raises(TelemetryError, match="severity"):
        record(command, tmp_path / "out.jsonl", label=Label(is_malicious=True, severity=2.0))
    assert list(tmp_path.iterdir()) == []


def test_events_are_written_in_one_step(tmp_path: Path) -> None:
    events = [Event(episode_id="e", step=step) for step in range(3)]
    for name in ("a.jsonl", "a.jsonl.gz"):
        recorder.write_events(tmp_path / name, events)
        assert read(tmp_path / name) == events
    with pytest.raises(OSError, match="No such file"):
        recorder.write_events(tmp_path / "none" / "a.jsonl", events)
