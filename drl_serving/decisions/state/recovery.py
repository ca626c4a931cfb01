"""Recovery: brings running episodes back from landed telemetry.

A program: `python -m drl_serving.decisions.state.recovery`.

What the workers share does not outlive the machine, and whoever deletes it loses it. The landing
zone has the episodes' events, where they were sent there too: each episode whose steps are there
from 0 on without a gap is folded up to its last step. The service runs this once, beside the
workers; until then, and for what is not in the landing zone, a decision that would miss history is
answered 409.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from drl_core.policy import features
from drl_core.policy.features import FEATURES_VERSION, fold, window
from drl_core.settings import Settings, load
from drl_core.telemetry.event import Event, parse_lines
from drl_core.telemetry.landing import LandingError, LandingZone
from drl_serving.decisions.state.episode_store import Episode, EpisodeKey, EpisodeStore, episode_key
from drl_serving.storage.shared_state import SharedState

RESTORED = "restored"
"""Mark of the shared state: this has been done."""


def restore(settings: Settings, state: SharedState) -> int:
    """Keep every episode of the landing zone that is newer than the service remembers episodes.

    Returns:
        How many were restored. An episode that is known further than its telemetry stays as it is.
    """
    serving = settings.serving
    store = EpisodeStore(state, serving.max_episodes, serving.episode_ttl_s)
    since_ns = time.time_ns() - serving.episode_ttl_s * 1_000_000_000
    rows: dict[EpisodeKey, dict[int, features.Array]] = defaultdict(dict)
    for event in _events(settings.landing_path, since_ns):
        rows[episode_key(event)].setdefault(event.step, window(event))
        if len(rows) > serving.max_episodes:
            rows.pop(next(iter(rows)))
    restored = sum(
        store.restore(key, episode)
        for key, steps in rows.items()
        if (episode := _folded(steps)) is not None
    )
    with state.env.begin(write=True) as writing:
        state.set_mark(RESTORED, 1, writing)
    return restored


def _folded(steps: dict[int, features.Array]) -> Episode | None:
    """The episode after its steps 0, 1, ... up to the first that is missing."""
    last = next(step for step in range(len(steps) + 1) if step not in steps) - 1
    if last < 0:
        return None
    windows = np.stack([steps[step] for step in range(last + 1)])
    first = np.zeros(last + 1, dtype=np.bool_)
    first[0] = True
    _, after = fold(windows, first)
    before = fold(windows[:-1], first[:-1])[1] if last else features.start()
    return Episode(last, FEATURES_VERSION, before[0].tobytes(), after[0].tobytes(), None)


def _events(landing: Path, since_ns: int) -> Iterator[Event]:
    """Events that are still in segments, in the order of landing."""
    if not landing.exists():
        return
    zone = LandingZone(landing)
    for key in zone.keys():  # noqa: SIM118  (no mapping)
        if all(int(segment.name[:20]) < since_ns for segment in zone.batch(key).segments):
            continue
        try:
            for part in zone.read(key):
                yield from part
        except LandingError:  # lives on as a table of the asset graph, or was changed: not trusted
            continue
    for name in zone.waiting():
        try:
            content = (landing / "segments" / name).read_bytes()
        except FileNotFoundError:  # sealed meanwhile
            continue
        yield from parse_lines(content, name)[0]


def main() -> None:
    """Restore once after the shared state was made anew."""
    settings = load()
    state = SharedState(settings.state_path, settings.serving.max_episodes)
    try:
        if not state.mark(RESTORED):
            restore(settings, state)
    finally:
        state.close()


if __name__ == "__main__":
    main()
