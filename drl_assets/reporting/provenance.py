"""Provenance: the commit of the running code."""

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """The commit of the code that runs, None outside a checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None
