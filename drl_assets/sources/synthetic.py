"""Synthetic telemetry generator, for tests and for trying things out; nothing here was observed.

A seed goes in, events or a file of the report's flat JSON come out. Each episode draws a kind of
behaviour, a level of activity and, if malicious, the window its attack sets in. Signals are
log-normal around the kind's level, so that the classes overlap: busy ordinary programs are louder
than quiet attacks, and before its onset an attack looks ordinary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_core.files import write_atomically
from drl_core.telemetry.event import Event, encode_event

_LEVELS = (
    *("syscall_count", "file_read_count", "file_write_count", "network_connections"),
    *("bytes_sent", "bytes_received", "child_processes", "cpu_usage", "memory_usage"),
)
_FLAGS = ("registry_modification", "privilege_escalation_attempt", "code_injection_detected")

# log(1 + level) of the nine signals, then the chance per window of the three flags
_ORDINARY = {
    "idle": ((3.0, 1.0, 0.5, 0.2, 1.0, 1.0, 0.0, 1.0, 3.5), (0.001, 0.001, 0.0)),
    "build": ((7.5, 6.0, 5.0, 0.1, 0.5, 0.5, 2.0, 4.3, 5.5), (0.002, 0.003, 0.001)),
    "network": ((6.0, 3.0, 2.5, 2.0, 8.0, 11.0, 0.3, 2.5, 4.8), (0.002, 0.002, 0.0)),
    "archive": ((7.0, 6.5, 6.0, 0.3, 4.0, 2.0, 0.5, 4.0, 4.5), (0.001, 0.001, 0.0)),
    "setup": ((6.0, 4.5, 4.5, 1.0, 5.0, 8.0, 1.8, 3.5, 4.5), (0.04, 0.03, 0.002)),
}
# what an attack adds to the ordinary program that carries it
_ATTACKS = {
    "ransomware": ((0.8, 1.2, 1.8, 0.2, 0.3, 0.2, 0.3, 0.4, 0.1), (0.03, 0.02, 0.01)),
    "exfiltration": ((0.3, 0.7, 0.1, 0.8, 3.0, 0.5, 0.1, 0.1, 0.0), (0.01, 0.01, 0.01)),
    "command_and_control": ((0.3, 0.2, 0.2, 1.2, 1.2, 0.9, 0.4, 0.1, 0.0), (0.02, 0.02, 0.01)),
    "injection": ((0.5, 0.2, 0.1, 0.3, 0.4, 0.4, 0.6, 0.1, 0.2), (0.03, 0.06, 0.15)),
    "persistence": ((0.4, 0.4, 0.7, 0.2, 0.2, 0.2, 0.5, 0.1, 0.0), (0.15, 0.04, 0.01)),
    "resource_theft": ((0.2, 0.0, 0.0, 0.4, 0.6, 0.4, 0.3, 1.5, 0.8), (0.01, 0.01, 0.0)),
}
_SPREAD = 0.8
_SESSIONS = 20

Floats = npt.NDArray[np.float64]


def generate_events(
    num_episodes: int = 50,
    steps_per_episode: int = 50,
    *,
    seed: int = 0,
    malicious_share: float = 0.5,
) -> Iterator[Event]:
    """Labelled synthetic events, episode after episode; the same arguments give the same events.

    Args:
        num_episodes: how many episodes; memory does not depend on it.
        steps_per_episode: windows of 1 s in each.
        seed: of numpy's generator.
        malicious_share: expected share of malicious episodes, 0..1.

    Raises:
        ValueError: an argument is out of range.
    """
    if num_episodes < 0 or steps_per_episode < 1:
        raise ValueError("num_episodes must be at least 0, steps_per_episode at least 1")
    if not 0 <= malicious_share <= 1:
        raise ValueError(f"malicious_share: {malicious_share} is outside 0 to 1")
    draw = np.random.default_rng(seed)
    carriers, attacks = tuple(_ORDINARY.values()), tuple(_ATTACKS.items())
    for episode in range(num_episodes):
        level, chance = (np.asarray(part) for part in carriers[draw.integers(len(carriers))])
        labels: dict[str, Any] = {"is_malicious": False, "severity": 0.0}
        onset = steps_per_episode
        add, add_chance = np.zeros(len(_LEVELS)), np.zeros(len(_FLAGS))
        if draw.random() < malicious_share:
            name, (extra, extra_chance) = attacks[draw.integers(len(attacks))]
            severity = float(np.round(draw.uniform(0.3, 1.0), 2))
            labels = {"is_malicious": True, "severity": severity, "attack_type": name}
            onset = int(draw.integers(max(1, steps_per_episode // 2)))
            add, add_chance = severity * np.asarray(extra), severity * np.asarray(extra_chance)
        active = (np.arange(steps_per_episode) >= onset)[:, None]
        levels = _signals(draw, level + active * add)
        flags = draw.random((steps_per_episode, len(_FLAGS))) < chance + active * add_chance
        # sessions hold several episodes, as recordings do
        session = f"synthetic-{episode % _SESSIONS}"
        fields: dict[str, Any] = {"episode_id": episode, "session_id": session, **labels}
        for step, (numbers, bits) in enumerate(zip(levels.tolist(), flags.tolist(), strict=True)):
            yield Event(
                step=step,
                **fields,
                **dict(zip(_LEVELS, numbers, strict=True)),
                **dict(zip(_FLAGS, bits, strict=True)),
            )


def _signals(draw: np.random.Generator, level: Floats) -> Floats:
    """Draw the nine signals of one episode around log levels [steps, 9]; counts are whole."""
    steps, width = level.shape
    activity = draw.normal(0.0, 0.5, width)  # of the episode
    bursts = draw.normal(0.0, _SPREAD, (steps, 1)) + draw.normal(0.0, _SPREAD / 2, level.shape)
    values: Floats = np.expm1(np.clip(level + activity + bursts, 0.0, 20.0))
    values[:, :7] = np.floor(values[:, :7])
    values[:, 7] = np.minimum(values[:, 7], 400.0)
    return values.round(2)


def create_sample_telemetry_file(
    output_path: str | Path,
    num_episodes: int = 50,
    steps_per_episode: int = 50,
    *,
    seed: int = 0,
    malicious_share: float = 0.5,
) -> int:
    """Write synthetic telemetry as the report's flat JSON and return the number of events.

    Args:
        output_path: `.json` gives one array, `.jsonl` one event a line; replaced in one step.
        num_episodes, steps_per_episode, seed, malicious_share: as in `generate_events`.

    Raises:
        ValueError: an argument is out of range, or the name ends otherwise.
        OSError: the file cannot be written; nothing half-written stays.
    """
    path = Path(output_path)
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"output_path: {path.name} must end in .json or .jsonl")
    lines = [
        encode_event(event)
        for event in generate_events(
            num_episodes, steps_per_episode, seed=seed, malicious_share=malicious_share
        )
    ]
    if path.suffix == ".json":
        write_atomically(path, b"[\n" + b",\n".join(lines) + b"\n]\n")
    else:
        write_atomically(path, b"".join(line + b"\n" for line in lines))
    return len(lines)
