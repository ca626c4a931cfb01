"""Files that the readers' tests write, and the real data where it is present."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of third-party reports; tests that need it are skipped without it."""
    folder = Path(os.environ.get("DRL_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real telemetry is not here: {folder} (set DRL_REAL_DATA)")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file: bytes as they are, text as UTF-8, anything else as JSON; gzip by its name."""

    def write(name: str, content: Any) -> Path:
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        raw = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write
