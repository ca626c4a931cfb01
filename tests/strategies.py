"""Hypothesis strategies shared by the tests: every event that the contract allows, and episodes."""

import datetime as dt
from typing import Any

from hypothesis import strategies as st

from drl_core.telemetry.event import SIGNALS, Event, Intervention, Outcome, Process, Stage

FLOAT32_MAX = 3.4028234e38
COUNTS = SIGNALS[:9]
FLAGS = SIGNALS[9:]

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
names = text.filter(bool)
sandbox_ids = st.text("azAZ09._:-", min_size=1, max_size=128)
digests = st.text("0123456789abcdefABCDEF", min_size=64, max_size=64)
episode_ids = names | st.integers(-(2**63), 2**63 - 1)
counts = st.floats(0, FLOAT32_MAX) | st.integers(0, 10**7) | st.sampled_from([0.0, FLOAT32_MAX])
window_seconds = st.floats(0.001, 86_400)
timestamps = st.floats(0, 253402300799999) | st.datetimes(
    dt.datetime(1970, 1, 1),
    dt.datetime(9998, 12, 31),
    # RFC 3339 knows offsets, not zones, whose clocks skip hours that never equal themselves
    timezones=st.integers(-1439, 1439).map(lambda m: dt.timezone(dt.timedelta(minutes=m))),
)
processes = st.builds(
    Process,
    name=st.none() | text,
    pid=st.none() | st.integers(0, 2**63 - 1),
    ppid=st.none() | st.integers(0, 2**63 - 1),
    image_path=st.none() | text,
)
interventions = st.builds(
    Intervention,
    action=st.integers(0, 4),
    propensity=st.floats(0, 1, exclude_min=True),
    outcome=st.sampled_from(Outcome),
)


def signals() -> st.SearchStrategy[dict[str, Any]]:
    """The 12 signals, each measured or not."""
    numbers = {name: st.none() | counts for name in COUNTS}
    bits = {name: st.none() | st.booleans() for name in FLAGS}
    return st.fixed_dictionaries(numbers | bits)


def labels() -> st.SearchStrategy[dict[str, Any]]:
    """All labels or none."""
    some = st.fixed_dictionaries(
        {
            "is_malicious": st.booleans(),
            "severity": st.none() | st.floats(0, 1),
            "attack_type": st.none() | text,
        }
    )
    return st.just({}) | some


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Any valid event."""
    fields: dict[str, Any] = {
        "episode_id": draw(episode_ids),
        "step": draw(st.integers(0, 2**31 - 1)),
        "sandbox_id": draw(sandbox_ids),
        "stage": draw(st.sampled_from(Stage)),
        "session_id": draw(st.none() | names),
        "artifact_sha256": draw(st.none() | digests),
        "timestamp": draw(st.none() | timestamps),
        "window_s": draw(window_seconds),
        "process": draw(st.none() | processes),
        "isolation_level": draw(st.integers(0, 3)),
        "episode_end": draw(st.booleans()),
        "extra": draw(
            st.none() | st.dictionaries(text, st.floats(-FLOAT32_MAX, FLOAT32_MAX), max_size=3)
        ),
        "intervention": draw(st.none() | interventions),
    }
    return Event(**fields, **draw(signals()), **draw(labels()))


@st.composite
def episodes(
    draw: st.DrawFn,
    *,
    max_windows: int = 12,
    malicious: bool | None = None,
    severity: st.SearchStrategy[float] | None = None,
    level: st.SearchStrategy[int] | None = None,
    episode_id: str = "e",
) -> list[Event]:
    """The windows of one labelled episode, steps from 0, ended by itself or only by the record."""
    bad = draw(st.booleans()) if malicious is None else malicious
    how_bad = draw(severity if severity is not None else st.floats(0, 1))
    windows = draw(st.lists(signals(), min_size=1, max_size=max_windows))
    ended = draw(st.booleans())
    in_force = draw(level if level is not None else st.integers(0, 3))
    seconds = draw(st.sampled_from([0.5, 1.0, 10.0]))
    return [
        Event(
            episode_id=episode_id,
            step=step,
            window_s=seconds,
            isolation_level=in_force,
            is_malicious=bad,
            severity=how_bad,
            attack_type="attack" if bad else None,
            episode_end=ended and step == len(windows) - 1,
            **window,
        )
        for step, window in enumerate(windows)
    ]
