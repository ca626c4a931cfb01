"""CAPEv2 report.json (2.x), as `drl_assets.sources.sandbox_report` reads it."""

from collections.abc import Iterator
from pathlib import Path

from drl_assets.sources import sandbox_report
from drl_assets.sources.records import Item
from drl_core.telemetry.event import Stage


def sniff(head: bytes, path: Path) -> bool:
    """True for a sandbox report with a sign of CAPE."""
    return sandbox_report.kind(head, path) == "cape"


def read(
    path: Path, *, sandbox_id: str | None = None, stage: Stage | None = None
) -> Iterator[Item]:
    """The report's one episode, or why there is none."""
    return sandbox_report.read(path, sandbox_id=sandbox_id or "cape", stage=stage)
