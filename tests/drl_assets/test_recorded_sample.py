"""Facts of the committed sample: counts, labels, size, sessions, and nothing of the machine."""

import gzip
import hashlib
import re
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from drl_core.policy import features
from drl_core.telemetry.event import SIGNALS, Event, parse_lines

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
SAMPLE = SAMPLES / "recorded" / "telemetry.jsonl.gz"


@pytest.fixture(scope="module")
def events() -> list[Event]:
    events, dead = parse_lines(gzip.decompress(SAMPLE.read_bytes()))
    assert dead == []
    return events


@pytest.fixture(scope="module")
def episodes(events: list[Event]) -> list[list[Event]]:
    grouped: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        grouped[str(event.episode_id)].append(event)
    return list(grouped.values())


def test_it_is_small() -> None:
    assert SAMPLE.stat().st_size < 5_000_000


def test_it_holds_enough_of_both_kinds_over_many_sessions(episodes: list[list[Event]]) -> None:
    benign = [episode for episode in episodes if episode[0].is_malicious is False]
    malicious = [episode for episode in episodes if episode[0].is_malicious]
    assert len(benign) >= 60
    assert len(malicious) >= 30
    assert len({episode[0].session_id for episode in benign}) >= 30
    assert len({episode[0].session_id for episode in malicious}) >= 15
    assert len({episode[0].attack_type for episode in malicious}) >= 8


def test_episodes_are_whole_and_ordered(episodes: list[list[Event]]) -> None:
    for episode in episodes:
        assert [event.step for event in episode] == list(range(len(episode)))
        assert not any(event.episode_end for event in episode[:-1])
        assert {event.window_s for event in episode} == {0.5}
        same = ("session_id", "artifact_sha256", "is_malicious", "severity", "attack_type", "stage")
        for name in same:
            assert len({getattr(event, name) for event in episode}) == 1, name


def test_every_session_is_one_script_with_one_label(events: list[Event]) -> None:
    for event in events:
        folder = "emulations" if event.is_malicious else "ordinary"
        assert list((SAMPLES / folder).glob(f"{event.session_id}.*")), event.session_id


def test_every_episode_is_a_run_of_a_script_as_it_stands_here(events: list[Event]) -> None:
    runs = set()
    for script in [*SAMPLES.glob("ordinary/*"), *SAMPLES.glob("emulations/*")]:
        content = script.read_bytes()
        variants = re.search(rb"^(?:# )?variants: (.*)$", content, re.MULTILINE)
        assert variants is not None, script
        for variant in variants[1].split(b"|"):
            text = content + b"\0".join((b"", *variant.split()))
            runs.add((script.stem, hashlib.sha256(text).hexdigest()))
    recorded = {(event.session_id, event.artifact_sha256) for event in events}
    assert recorded == runs


def test_the_readme_lists_every_session(events: list[Event]) -> None:
    readme = (SAMPLES / "README.md").read_text()
    sessions = {event.session_id for event in events}
    assert [name for name in sessions if f"| `{name}` |" not in readme] == []
    assert f"{len(events)} events; " in readme


def test_the_scripts_talk_to_loopback_only() -> None:
    text = "\n".join(path.read_text() for path in SAMPLES.glob("[eo]*/*") if path.is_file())
    hosts = set(re.findall(r"https?://([^/:\s\"']+)", text))
    addresses = set(re.findall(r"[\"']((?:\d{1,3}\.){3}\d{1,3})[\"']", text))
    assert hosts | addresses == {"127.0.0.1"}


def test_labels_reach_no_feature(events: list[Event]) -> None:
    for event in events:
        bare = msgspec.structs.replace(event, is_malicious=None, severity=None, attack_type=None)
        np.testing.assert_array_equal(features.window(event), features.window(bare))


def test_nothing_of_the_machine_is_in_it(events: list[Event]) -> None:
    text = gzip.decompress(SAMPLE.read_bytes()).decode("ascii")
    assert not re.search(r"/(home|root|tmp|usr|work)\b|\broot\b|@", text)
    assert all(event.process is None for event in events)
    assert {event.sandbox_id for event in events} == {"sample"}


def test_no_single_signal_separates_the_classes(episodes: list[list[Event]]) -> None:
    """Loud ordinary programs and quiet emulations: each signal's mean has an overlap."""
    truth = np.array([bool(episode[0].is_malicious) for episode in episodes])
    means = np.array(
        [np.nanmean([features.window(event) for event in episode], axis=0) for episode in episodes]
    )
    for column, name in enumerate(SIGNALS):
        ranks = means[:, column].argsort(kind="stable").argsort()
        wins = ranks[truth].mean() - (truth.sum() - 1) / 2
        assert 0.05 < wins / (~truth).sum() < 0.95, name


def test_the_stage_tells_nothing_of_the_label(episodes: list[list[Event]]) -> None:
    stages = {(episode[0].stage, episode[0].is_malicious) for episode in episodes}
    assert len(stages) == 4
