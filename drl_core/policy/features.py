"""Feature extraction: the 30 features, as a fold (window, carry) -> (features, carry').

The only definition: `observe` and `assemble` are written over an array namespace `xp`, so the
same lines run in numpy over millions of rows (`fold`), in numpy row by row (`step`), and in torch
inside the exported ONNX graph, where the model takes raw signals plus carry and needs no port of
this table. Everything is computed in float64 and leaves as float32.

A **window** is a row of 14 numbers: the 12 signals of `telemetry.event.SIGNALS` (NaN where
not measured), `window_s` and `isolation_level`. A **carry** is a row of 14 numbers: the 12 running
sums, the number of windows and the seconds so far; it starts as zeros.
"""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import MAX_ISOLATION_LEVEL
from drl_core.telemetry.event import SIGNALS, Event

FEATURES_VERSION = 1

Array = npt.NDArray[np.float64]

_NOW = (
    "syscalls",
    "file_reads",
    "file_writes",
    "connections",
    "bytes_sent",
    "bytes_received",
    "child_processes",
    "cpu",
    "memory",
    "registry",
    "privilege",
    "injection",
)
FEATURES = (
    *_NOW,
    *(f"mean_{name}" for name in _NOW),
    "write_ratio",
    "exfil_ratio",
    "network_intensity",
    "elapsed",
    "measured",
    "containment",
)
FEATURE_COUNT = len(FEATURES)
SIGNAL_COUNT = len(SIGNALS)
WINDOW_WIDTH = SIGNAL_COUNT + 2
CARRY_WIDTH = SIGNAL_COUNT + 2

_COUNTS_HI = (1e6, 1e5, 1e5, 1e3, 1e9, 1e9, 1e3)
"""Rates per second at which features 0..6 reach 1."""
_MEMORY_HI = 65536.0
_NETWORK_HI = 1e9
_ELAPSED_HI = 3600.0
_LEAST = 1e-30
"""Keeps 0 / 0 at 0 in the ratios; a float32 constant, so that every runtime has the same."""


def _log_scaled(xp: Any, value: Any, *hi: float) -> Any:
    """n(x, hi) = clip(log1p(x) / log1p(hi), 0, 1), one `hi` for all columns or one each.

    The divisor is an array, since an exporter may keep a plain number as float32.
    """
    return xp.clip(xp.log1p(value) / xp.asarray(np.log1p(np.asarray(hi))), 0.0, 1.0)


def observe(xp: Any, windows: Any) -> tuple[Any, Any]:
    """Features 0..11 and 24..29 but `elapsed`, which need this window alone.

    Args:
        xp: numpy or torch.
        windows: float64 [N, 14].

    Returns:
        now: [N, 12], each in [0, 1].
        rest: (write_ratio, exfil_ratio, network_intensity, measured, containment), each [N, 1].
    """
    signals = windows[:, :SIGNAL_COUNT]
    window_s = windows[:, SIGNAL_COUNT : SIGNAL_COUNT + 1]
    level = windows[:, SIGNAL_COUNT + 1 :]
    missing = xp.isnan(signals)
    zeros = xp.zeros_like(signals)
    measured = xp.where(missing, zeros, zeros + 1.0).mean(1)[:, None]
    signals = xp.where(missing, zeros, signals)
    counts = signals[:, :7]
    rates = counts / window_s
    now = xp.concat(
        (
            _log_scaled(xp, rates, *_COUNTS_HI),
            xp.clip(signals[:, 7:8] / 100.0, 0.0, 1.0),
            _log_scaled(xp, signals[:, 8:9], _MEMORY_HI),
            signals[:, 9:],
        ),
        1,
    )
    reads, writes = counts[:, 1:2], counts[:, 2:3]
    sent = counts[:, 4:5]
    files, traffic = reads + writes, sent + counts[:, 5:6]
    rest = (
        writes / xp.clip(files, _LEAST, None),
        sent / xp.clip(traffic, _LEAST, None),
        _log_scaled(xp, traffic / window_s, _NETWORK_HI),
        measured,
        level / float(MAX_ISOLATION_LEVEL),
    )
    return now, rest


def assemble(xp: Any, now: Any, rest: tuple[Any, ...], carry: Any) -> Any:
    """All 30 features from this window's parts and the carry that includes this window.

    Returns:
        float64 [N, 30], each in [0, 1].
    """
    write_ratio, exfil_ratio, network_intensity, measured, containment = rest
    sums = carry[:, :SIGNAL_COUNT]
    windows_so_far = carry[:, SIGNAL_COUNT : SIGNAL_COUNT + 1]
    seconds_so_far = carry[:, SIGNAL_COUNT + 1 :]
    return xp.concat(
        (
            now,
            xp.clip(sums / windows_so_far, 0.0, 1.0),
            write_ratio,
            exfil_ratio,
            network_intensity,
            _log_scaled(xp, seconds_so_far, _ELAPSED_HI),
            measured,
            containment,
        ),
        1,
    )


def step(xp: Any, windows: Any, carry: Any) -> tuple[Any, Any]:
    """One window of each of N episodes.

    Args:
        xp: numpy or torch.
        windows: float64 [N, 14].
        carry: float64 [N, 14], of the windows before this one; zeros at an episode's start.

    Returns:
        features: float64 [N, 30].
        carry: float64 [N, 14], this window included.
    """
    now, rest = observe(xp, windows)
    after = xp.concat(
        (
            carry[:, :SIGNAL_COUNT] + now,
            carry[:, SIGNAL_COUNT : SIGNAL_COUNT + 1] + 1.0,
            carry[:, SIGNAL_COUNT + 1 :] + windows[:, SIGNAL_COUNT : SIGNAL_COUNT + 1],
        ),
        1,
    )
    return assemble(xp, now, rest, after), after


def start(episodes: int = 1) -> Array:
    """The carry before an episode's first window: zeros [episodes, 14]."""
    return np.zeros((episodes, CARRY_WIDTH))


_CHUNK = 8192
"""Rows per pass: the intermediate arrays stay in the processor's cache."""


def fold(
    windows: Array, first: npt.NDArray[np.bool_], carry: Array | None = None
) -> tuple[npt.NDArray[np.float32], Array]:
    """Fold whole episodes at once, vectorised.

    Args:
        windows: float64 [N, 14], grouped by episode and ordered by step inside each.
        first: bool [N], True on the first row of each episode; `first[0]` is True.
        carry: float64 [E, 14], the carry that each of the E episodes begins with (from earlier
            batches); zeros when omitted.

    Returns:
        features: float32 [N, 30].
        carry: float64 [E, 14] after each episode's last row.

    Raises:
        ValueError: where the shapes do not fit or the first row starts no episode.
    """
    rows = len(windows)
    if windows.shape != (rows, WINDOW_WIDTH) or first.shape != (rows,):
        raise ValueError(f"windows [N, {WINDOW_WIDTH}] and first [N] expected")
    if rows and not first[0]:
        raise ValueError("first[0] must be True: the first row starts an episode")
    episodes = int(first.sum())
    begin = start(episodes) if carry is None else carry
    if begin.shape != (episodes, CARRY_WIDTH):
        raise ValueError(f"carry [{episodes}, {CARRY_WIDTH}] expected, got {begin.shape}")
    features = np.empty((rows, FEATURE_COUNT), dtype=np.float32)
    after = np.empty((episodes, CARRY_WIDTH))
    running = np.zeros(CARRY_WIDTH)
    episode = -1
    for low in range(0, rows, _CHUNK):
        part = slice(low, min(low + _CHUNK, rows))
        now, rest = observe(np, windows[part])
        add = np.empty((len(now), CARRY_WIDTH))
        add[:, :SIGNAL_COUNT] = now
        add[:, SIGNAL_COUNT] = 1.0
        add[:, SIGNAL_COUNT + 1] = windows[part, SIGNAL_COUNT]
        starts = np.flatnonzero(first[part])
        if episode >= 0 and (not len(starts) or starts[0] != 0):
            add[0] += running  # the episode goes on from the chunk before
        owners = episode + 1 + np.arange(len(starts))
        add[starts] += begin[owners]
        sums = np.cumsum(add, axis=0)
        if len(starts):  # take away, in each episode, what came before it in this chunk
            before = np.vstack((np.zeros(CARRY_WIDTH), sums))[starts]
            lengths = np.diff(np.append(starts, len(add)))
            sums[starts[0] :] -= np.repeat(before, lengths, axis=0)
            ends = np.append(starts[1:] - 1, len(add) - 1)
            after[owners] = sums[ends]
            if starts[0] != 0:
                after[episode] = sums[starts[0] - 1]
            episode += len(starts)
        else:
            after[episode] = sums[-1]
        running = sums[-1]
        features[part] = assemble(np, now, rest, sums)
    return features, after


_signals = attrgetter(*SIGNALS)


def window(event: Event) -> Array:
    """One event as a window row, float64 [14]."""
    row: Array = windows_of((event,))[0]
    return row


def windows_of(events: Iterable[Event]) -> Array:
    """Events as window rows, float64 [N, 14]."""
    rows = [(*_signals(event), event.window_s, event.isolation_level) for event in events]
    return np.array(rows, dtype=np.float64)  # None becomes NaN
