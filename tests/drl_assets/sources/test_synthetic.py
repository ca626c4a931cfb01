"""The synthetic generator: one seed gives one file, and its classes overlap."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_assets import sources
from drl_assets.sources.synthetic import create_sample_telemetry_file, generate_events
from drl_core.telemetry.event import SIGNALS, Event, encode_event, parse_event


@pytest.mark.parametrize("name", ["sample.json", "sample.jsonl"])
def test_the_file_is_the_flat_json_of_the_report(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert create_sample_telemetry_file(path, num_episodes=4, steps_per_episode=5, seed=1) == 20
    items = list(sources.read(path))
    assert items == list(generate_events(4, 5, seed=1))
    first = items[0]
    assert isinstance(first, Event)
    assert first.episode_id == 0
    assert all(getattr(first, signal) is not None for signal in SIGNALS)
    assert b'"registry_modification":false' in path.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((7, 7, 8)):
        path = tmp_path / f"{number}.jsonl"
        create_sample_telemetry_file(path, seed=seed)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


@given(
    episodes=st.integers(0, 4),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_every_event_is_valid(episodes: int, steps: int, seed: int, share: float) -> None:
    events = list(generate_events(episodes, steps, seed=seed, malicious_share=share))
    assert len(events) == episodes * steps
    assert [parse_event(encode_event(event)) for event in events] == events


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_malicious_episodes_is_as_asked(share: float) -> None:
    labels = [event.is_malicious for event in generate_events(600, 1, malicious_share=share)]
    assert abs(np.mean(labels) - share) < 0.06


def test_no_single_signal_separates_the_classes() -> None:
    events = list(generate_events(200, 20, seed=3))
    truth = np.array([bool(event.is_malicious) for event in events])
    for signal in SIGNALS:
        values = np.array([float(getattr(event, signal)) for event in events])
        order = values.argsort().argsort()
        below = order[truth].mean() / len(order)
        assert 0.3 < below < 0.75, signal


@pytest.mark.parametrize(
    "wrong", [{"num_episodes": -1}, {"steps_per_episode": 0}, {"malicious_share": 1.5}]
)
def test_arguments_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        list(generate_events(**wrong))  # type: ignore[arg-type]


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output_path"):
        create_sample_telemetry_file(tmp_path / "sample.csv")
