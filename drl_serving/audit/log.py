"""The audit log: append-only `<home>/audit/<date>.jsonl`, written by every worker and the CLI.

`record` only queues. A thread appends each record in one write, which keeps lines whole among
processes, and syncs them in groups. Nothing is dropped in silence: a disk that refuses is tried
again, and what finds no place, in the queue or on the disk at the end, goes to the service's log.
"""

import contextlib
import datetime as dt
import errno
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec
import structlog

from drl_serving.audit.schemas import AuditPage, AuditRecord
from drl_serving.http.cursor import CursorError
from drl_serving.observability import redaction, tracing

CAPACITY = 10_000
"""Records that wait to be written."""
RETRY_S = 1.0
_log = structlog.stdlib.get_logger(__name__)
_line = msgspec.json.Decoder(AuditRecord)


class Audit:
    """Writes the records of this process; to be closed.

    Args:
        folder: of the files, made where it is not there.
        capacity: records that may wait.
    """

    def __init__(self, folder: Path, capacity: int = CAPACITY) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._queue: queue.Queue[AuditRecord | None] = queue.Queue(capacity)
        self._closing = threading.Event()
        self._torn = False
        self._thread = threading.Thread(target=self._drain, name="audit", daemon=True)
        self._thread.start()

    def record(
        self,
        action: str,
        *,
        actor: str,
        target: str = "",
        result: str = "ok",
        client: str | None = None,
    ) -> None:
        """Note who did what; returns at once.

        The trace is that of the request at hand. Secrets in `target` and `result` are taken out.
        """
        trace = tracing.current.get()
        noted = AuditRecord(
            time=dt.datetime.now(dt.UTC),
            actor=redaction.text(actor),
            action=action,
            target=redaction.text(target),
            result=redaction.text(result),
            client=client,
            trace_id=None if trace is None else trace.trace_id,
        )
        if self._closing.is_set():
            _to_service_log(noted)
            return
        try:
            self._queue.put_nowait(noted)
        except queue.Full:
            _to_service_log(noted)

    def close(self) -> None:
        """Write what waits; whatever the disk refuses now goes to the service's log."""
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> "Audit":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _drain(self) -> None:
        ended = False
        while not ended:
            group = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < CAPACITY:
                    group.append(self._queue.get_nowait())
            ended = None in group
            self._write([noted for noted in group if noted is not None])

    def _write(self, records: list[AuditRecord]) -> None:
        """Append records and sync them, until it is done or the log is closing."""
        waiting = list(records)
        while waiting:
            try:
                self._append(waiting)
            except OSError as error:
                _log.error("audit log not written", error=str(error), waiting=len(waiting))
                if self._closing.wait(RETRY_S):
                    for noted in waiting:
                        _to_service_log(noted)
                    return

    def _append(self, waiting: list[AuditRecord]) -> None:
        """Append, taking off the list what is written; the synced days are closed at the end."""
        with contextlib.ExitStack() as opened:
            files: dict[Path, int] = {}
            while waiting:
                path = self.folder / f"{waiting[0].time.date().isoformat()}.jsonl"
                if path not in files:
                    files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    opened.callback(os.close, files[path])
                    opened.callback(os.fsync, files[path])
                line = (b"\n" if self._torn else b"") + msgspec.json.encode(waiting[0]) + b"\n"
                self._torn = True  # until all of it is there
                if os.write(files[path], line) < len(line):
                    raise OSError(errno.ENOSPC, "a record was written in part", str(path))
                self._torn = False
                waiting.pop(0)


def _to_service_log(noted: AuditRecord) -> None:
    _log.error("audit record", **msgspec.to_builtins(noted))


def read(
    folder: Path,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> AuditPage:
    """A page of the audit log, the newest first. Reads files: call it in a thread.

    Args:
        folder: of the files.
        since: earliest time, included.
        until: latest time, excluded.
        actor: whose records.
        action: which records; `keys` stands for every `keys.…`.
        before: `next` of the page before.
        limit: records of the page.

    Raises:
        CursorError: `before` is not a cursor.
        OSError: a file cannot be read.
    """
    found: list[AuditRecord] = []
    last = ""
    for cursor, noted in _backwards(folder, _position(before), since, until):
        if (
            (since is None or noted.time >= since)
            and (until is None or noted.time < until)
            and (actor is None or noted.actor == actor)
            and (action is None or f"{noted.action}.".startswith(f"{action}."))
        ):
            if len(found) == limit:
                return AuditPage(found, last)
            found.append(noted)
            last = cursor
    return AuditPage(found, None)


def _backwards(
    folder: Path,
    before: tuple[str, int] | None,
    since: dt.datetime | None,
    until: dt.datetime | None,
) -> Iterator[tuple[str, AuditRecord]]:
    """Cursor and record, from the newest line before a position; torn lines are left out."""
    for path in sorted(folder.glob("????-??-??.jsonl"), reverse=True):
        day = path.stem
        if (
            (before is not None and day > before[0])
            or (until is not None and day > until.astimezone(dt.UTC).date().isoformat())
            or (since is not None and day < since.astimezone(dt.UTC).date().isoformat())
        ):
            continue
        lines = path.read_bytes().split(b"\n")
        end = before[1] if before is not None and day == before[0] else len(lines)
        for number in range(min(end, len(lines)) - 1, -1, -1):
            try:
                noted = _line.decode(lines[number])
            except msgspec.MsgspecError:
                continue
            yield f"{day}:{number}", noted


def _position(cursor: str | None) -> tuple[str, int] | None:
    if cursor is None:
        return None
    day, _, number = cursor.partition(":")
    try:
        dt.date.fromisoformat(day)
        return day, int(number)
    except ValueError:
        raise CursorError from None
