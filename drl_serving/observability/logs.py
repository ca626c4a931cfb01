"""Structured JSON logs, the service's own and those of its libraries, written off the event loop.

A record is put on a bounded queue; a thread takes out secrets and user names, renders one line of
JSON and writes it to standard output and, where `observability.log_file` is set, to a rotated file
that the workers share. When the queue is full records are dropped and counted: a decision never
waits for a log.
"""

import atexit
import contextlib
import json
import logging
import logging.handlers
import os
import queue
import sys
from pathlib import Path

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from drl_core.settings import Observability
from drl_serving.observability import redaction, tracing

CAPACITY = 10_000
"""Records that wait to be written, in one process."""


def _redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    clean: EventDict = redaction.value(event)
    return clean


def _with_origin(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The trace that the record was made under, and the process."""
    record: logging.LogRecord = event["_record"]
    trace_id = getattr(record, "trace_id", None)
    if trace_id is not None:
        event["trace_id"] = trace_id
    event["pid"] = record.process
    return event


_SHARED: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class BoundedQueueHandler(logging.handlers.QueueHandler):
    """Puts records on a queue as they are; the next one that fits reports how many were dropped."""

    def __init__(self, waiting: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(waiting)
        self._waiting = waiting
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Note the trace, which the writing thread cannot see."""
        trace = tracing.current.get()
        record.trace_id = None if trace is None else trace.trace_id
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            return
        if self.dropped and not self._waiting.full():
            lost, self.dropped = self.dropped, 0
            logging.getLogger(__name__).warning("log records dropped: %d", lost)


class _Listener(logging.handlers.QueueListener):
    def enqueue_sentinel(self) -> None:
        self.queue.put(None)  # type: ignore[attr-defined]  # waits for room, where the base raises


class Logs:
    """The logging of this process, to be closed so that the last lines are written."""

    def __init__(self, handlers: list[logging.Handler], level: str) -> None:
        waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(CAPACITY)
        self.handler = BoundedQueueHandler(waiting)
        self._listener = _Listener(waiting, *handlers)
        self._handlers = handlers
        self._open = True
        logging.basicConfig(handlers=[self.handler], force=True)
        self.set_level(level)
        self._listener.start()
        atexit.register(self.close)

    def set_level(self, level: str) -> None:
        """Log from this level on: debug, info, warning or error."""
        logging.getLogger().setLevel(level.upper())

    def close(self) -> None:
        """Write what waits; what is logged later has no handler."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        logging.getLogger().removeHandler(self.handler)
        self._listener.stop()
        for handler in self._handlers:
            handler.close()


def configure(settings: Observability | None = None, home: Path | None = None) -> Logs:
    """Set up logging for the whole process.

    Args:
        settings: level and file; the defaults without.
        home: what a relative path of the file starts from; the working directory without.
    """
    settings = settings or Observability()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if settings.log_file is not None:
        handlers.append(_rotated(settings, (home or Path.cwd()) / settings.log_file))
    for handler in handlers:
        handler.setFormatter(_formatter())
        handler.handleError = _not_written  # type: ignore[method-assign,assignment]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return Logs(handlers, settings.log_level)


def _formatter() -> logging.Formatter:
    return ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            _with_origin,
            structlog.processors.format_exc_info,
            ProcessorFormatter.remove_processors_meta,
            _redacted,
            structlog.processors.JSONRenderer(serializer=json.dumps, ensure_ascii=False),
        ],
    )


def _not_written(_: logging.LogRecord) -> None:
    """Say that a record is lost, and why, without what is in it: that has not been redacted."""
    kind = sys.exc_info()[0]
    with contextlib.suppress(OSError):  # there is nowhere left to say it
        sys.stderr.write(f"a log record was not written: {kind and kind.__name__}\n")


def _rotated(settings: Observability, path: Path) -> logging.Handler:
    """A file that several processes write and rotate, readable by its owner and group."""
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    return ConcurrentRotatingFileHandler(
        os.fspath(path),
        maxBytes=settings.log_max_bytes,
        backupCount=settings.log_keep,
        encoding="utf-8",
        chmod=0o640,
    )
