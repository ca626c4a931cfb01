"""CAPEv2 report.json (2.x), as `drl_assets.sources.reports` reads it."""

from collections.abc import Iterator
from pathlib import Path

from drl_assets.sources import reports
from drl_assets.sources.items import Item
from drl_core.telemetry import Stage


def sniff(head: bytes, path: Path) -> bool:
    """True for a sandbox report with a sign of CAPE."""
    return reports.kind(head, path) == "cape"


def read(
    path: Path, *, sandbox_id: str | None = None, stage: Stage | None = None
) -> Iterator[Item]:
    """The report's one episode, or why there is none."""
    return reports.read(path, sandbox_id=sandbox_id or "cape", stage=stage)
