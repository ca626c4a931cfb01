"""The same two jobs as another would do them: vectorised pandas, and a loop over rows.

Both check what the parser checks (types, ranges, names, digests, labels) and compute the 30
features of the contract, so that the comparison is of equal work. pandas is given the whole block
at once, as JSON lines, which is its best case.
"""

import io
import json
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from drl_core.policy.features import FEATURE_COUNT
from drl_core.telemetry.event import SIGNALS

_COUNTS = SIGNALS[:9]
_FLAGS = SIGNALS[9:]
_LIMIT = 3.4028234e38
_SANDBOX = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_HI = (1e6, 1e5, 1e5, 1e3, 1e9, 1e9, 1e3)


def pandas_parse(block: bytes) -> pd.DataFrame:
    """JSON lines -> a validated frame, vectorised.

    Raises:
        ValueError: naming the column that holds an invalid value.
    """
    frame = pd.read_json(
        io.BytesIO(block),
        lines=True,
        dtype={"sandbox_id": "string", "episode_id": "string"},
        convert_dates=False,
    )
    for name in (*_COUNTS, "window_s"):
        column = pd.to_numeric(frame[name])
        if not column.between(0, _LIMIT).all():
            raise ValueError(name)
    if (frame["window_s"] < 0.001).any():
        raise ValueError("window_s")
    if not (pd.api.types.is_integer_dtype(frame["step"]) and (frame["step"] >= 0).all()):
        raise ValueError("step")
    for name in _FLAGS:
        if frame[name].dtype != bool:
            raise ValueError(name)
    if not frame["stage"].isin(("positive", "negative")).all():
        raise ValueError("stage")
    # names repeat within an episode: checked once per distinct one, as ours are
    for name, pattern in (("sandbox_id", _SANDBOX), ("artifact_sha256", _SHA256)):
        if not all(pattern.match(value) for value in frame[name].unique()):
            raise ValueError(name)
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], format="ISO8601", utc=True)
    if not frame["severity"].between(0, 1).all():
        raise ValueError("severity")
    return frame


def loop_parse(block: bytes) -> list[dict[str, Any]]:
    """JSON lines -> validated dicts, one by one.

    Raises:
        ValueError: naming the field that holds an invalid value.
    """
    records = []
    for line in block.splitlines():
        record = json.loads(line)
        for name in (*_COUNTS, "window_s"):
            value = record[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(name)
            if not 0 <= value <= _LIMIT:
                raise ValueError(name)
        if record["window_s"] < 0.001:
            raise ValueError("window_s")
        if not isinstance(record["step"], int) or record["step"] < 0:
            raise ValueError("step")
        for name in _FLAGS:
            if not isinstance(record[name], bool):
                raise TypeError(name)
        if record["stage"] not in ("positive", "negative"):
            raise ValueError("stage")
        if not _SANDBOX.match(record["sandbox_id"]):
            raise ValueError("sandbox_id")
        if not _SHA256.match(record["artifact_sha256"]):
            raise ValueError("artifact_sha256")
        record["timestamp"] = pd.Timestamp(record["timestamp"]).to_pydatetime()
        if not 0 <= record["severity"] <= 1:
            raise ValueError("severity")
        records.append(record)
    return records


def pandas_states(
    windows: npt.NDArray[np.float64], episode: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Windows [N, 14] -> features [N, 30] with groupby and column arithmetic."""
    frame = pd.DataFrame(windows, columns=[*SIGNALS, "window_s", "level"])
    measured = frame[list(SIGNALS)].notna().sum(axis=1) / len(SIGNALS)
    frame = frame.fillna(0.0)
    now = pd.DataFrame(index=frame.index)
    for name, hi in zip(SIGNALS[:7], _HI, strict=True):
        now[name] = (np.log1p(frame[name] / frame["window_s"]) / np.log1p(hi)).clip(0, 1)
    now["cpu_usage"] = (frame["cpu_usage"] / 100).clip(0, 1)
    now["memory_usage"] = (np.log1p(frame["memory_usage"]) / np.log1p(65536)).clip(0, 1)
    for name in _FLAGS:
        now[name] = frame[name]
    groups = now.groupby(episode, sort=False)
    means = groups.cumsum().div(groups.cumcount() + 1, axis=0).clip(0, 1)
    files = frame["file_read_count"] + frame["file_write_count"]
    traffic = frame["bytes_sent"] + frame["bytes_received"]
    rest = pd.DataFrame(
        {
            "write_ratio": (frame["file_write_count"] / files).where(files > 0, 0.0),
            "exfil_ratio": (frame["bytes_sent"] / traffic).where(traffic > 0, 0.0),
            "network": (np.log1p(traffic / frame["window_s"]) / np.log1p(1e9)).clip(0, 1),
            "elapsed": (
                np.log1p(frame["window_s"].groupby(episode, sort=False).cumsum()) / np.log1p(3600)
            ).clip(0, 1),
            "measured": measured,
            "containment": frame["level"] / 3,
        }
    )
    return np.hstack((now.to_numpy(), means.to_numpy(), rest.to_numpy())).astype(np.float32)


def _scaled(value: float, hi: float) -> float:
    return min(math.log1p(value) / math.log1p(hi), 1.0)


def loop_states(
    windows: npt.NDArray[np.float64], episode: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Windows [N, 14] -> features [N, 30], row by row."""
    states = np.empty((len(windows), FEATURE_COUNT), dtype=np.float32)
    current, sums, count, seconds = -1, [0.0] * 12, 0, 0.0
    for index, (row, owner) in enumerate(zip(windows.tolist(), episode.tolist(), strict=True)):
        if owner != current:
            current, sums, count, seconds = owner, [0.0] * 12, 0, 0.0
        signals = [0.0 if math.isnan(value) else value for value in row[:12]]
        missing = sum(math.isnan(value) for value in row[:12])
        window_s = row[12]
        now = [_scaled(v / window_s, hi) for v, hi in zip(signals[:7], _HI, strict=True)]
        now += [min(signals[7] / 100, 1.0), _scaled(signals[8], 65536), *signals[9:]]
        sums = [total + value for total, value in zip(sums, now, strict=True)]
        count, seconds = count + 1, seconds + window_s
        files, traffic = signals[1] + signals[2], signals[4] + signals[5]
        states[index] = (
            *now,
            *(min(total / count, 1.0) for total in sums),
            signals[2] / files if files else 0.0,
            signals[4] / traffic if traffic else 0.0,
            _scaled(traffic / window_s, 1e9),
            _scaled(seconds, 3600),
            1 - missing / 12,
            row[13] / 3,
        )
    return states
