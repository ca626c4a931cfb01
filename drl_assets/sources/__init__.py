"""Recorded telemetry of any known format -> events, dead letters, and files without evidence.

Paths come in through `find`, items leave through `read`, one at a time: a file is never held as a
whole, and nothing that it contains stops the reading of the next one. `FORMATS` names the formats;
each is a module with `sniff(head, path)` and `read(path, *, sandbox_id, stage)`.
"""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from drl_assets.sources.records import UNREADABLE, Item, NoEvidence, damaged, open_binary, refuse
from drl_core.telemetry.event import Event, Stage

__all__ = ["FORMATS", "Item", "Label", "NoEvidence", "detect", "find", "read"]

Label = Literal["malicious", "benign"]

FORMATS: dict[str, str] = {
    "cape": "drl_assets.sources.cape",
    "cuckoo": "drl_assets.sources.cuckoo",
    "perf-csv": "drl_assets.sources.perf_csv",
    "strace": "drl_assets.sources.strace.reader",
    "json": "drl_assets.sources.flat_json",
}
"""Format -> module, in the order in which `auto` asks them; imported when first needed."""

_HEAD_BYTES = 1 << 16
_SAMPLES = ".proc.jsonl"
"""Beside a strace log of the same name."""


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        raise ValueError(f"format: {name!r} is unknown, choose one of auto, {', '.join(FORMATS)}")
    return importlib.import_module(FORMATS[name])


def find(paths: Iterable[Path]) -> list[Path]:
    """Files to read: given files as they stand, folders walked in sorted order.

    Hidden files are left out, and so are the /proc samples of a strace log, which are read with it.
    Files of no known format are kept: `read` reports them.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not path.is_dir():
            found[path] = None
            continue
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and not _is_sample(file):
                found[file] = None
    return list(found)


def _is_sample(file: Path) -> bool:
    log = file.name.removesuffix(_SAMPLES)
    return log != file.name and file.with_name(log).exists()


def detect(path: Path) -> str | None:
    """The format of a file by its content; None where it is of no known one.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be opened or unpacked.
    """
    with open_binary(path) as file:
        read_some = getattr(file, "read1", file.read)
        head: bytes = read_some(_HEAD_BYTES)
    return next((name for name in FORMATS if _module(name).sniff(head, path)), None)


def read(
    path: Path,
    *,
    format: str = "auto",
    sandbox_id: str | None = None,
    stage: Stage | None = None,
    label: Label | None = None,
) -> Iterator[Item]:
    """All that one file holds, in its order, as a stream.

    Args:
        path: a file, gzip or not.
        format: a name of `FORMATS`, or `auto`.
        sandbox_id: overrides what the file says.
        stage: overrides what the file says.
        label: ground truth that the file does not carry, set on each of its events; severity and
            attack type stay only where they agree with it.

    Raises:
        ValueError: unknown format. Nothing in the file itself raises.
    """
    if format != "auto":
        _module(format)
    return _read(path, format, sandbox_id, stage, label)


def _read(
    path: Path, format: str, sandbox_id: str | None, stage: Stage | None, label: Label | None
) -> Iterator[Item]:
    try:
        if path.stat().st_size == 0:
            yield NoEvidence(path.name, "the file is empty")
            return
        name = detect(path) if format == "auto" else format
    except UNREADABLE as cause:
        yield damaged(path, cause)
        return
    if name is None:
        known = ", ".join(FORMATS)
        yield refuse(path, "format", f"no known format; supported are {known}")
        return
    for item in _module(name).read(path, sandbox_id=sandbox_id, stage=stage):
        yield _labelled(item, label) if label and isinstance(item, Event) else item


def _labelled(event: Event, label: Label) -> Event:
    changes: dict[str, Any] = {"is_malicious": label == "malicious"}
    if event.is_malicious is not changes["is_malicious"]:
        changes |= {"severity": None, "attack_type": None}
    return msgspec.structs.replace(event, **changes)
