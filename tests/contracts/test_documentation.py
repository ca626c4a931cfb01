"""Documentation names what exists: every path, file and dotted name of the project resolves."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HISTORY = {"CHANGELOG.md"}
"""Names what was, too."""
PATH = re.compile(
    r"(?<![\w/.-])((?:drl_\w+|benchmarks|config|deploy|docs|samples|tests)/[\w./*-]*\w/?)"
)
FILE = re.compile(r"(?<![\w.-])([\w/]+\.py)\b")
DOTTED = re.compile(r"(?<![\w/.-])(drl_\w+(?:\.\w+)+)")


@cache
def tracked(pattern: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--", pattern],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return listed.stdout.split()


@cache
def names_in(module: Path) -> frozenset[str]:
    """What a module defines: classes, their members, functions, constants."""
    if not module.exists():
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return frozenset(found)


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or something that a module defines."""
    place = REPOSITORY
    parts = dotted.split(".")
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
        elif part in names_in(place / "__init__.py"):
            return number == len(parts) - 1
        elif (module := place / f"{part}.py").is_file():
            return set(parts[number + 1 :]) <= names_in(module)
        else:
            return False
    return True


@pytest.mark.parametrize("name", [name for name in tracked("*.md") if name not in HISTORY])
def test_every_path_and_name_in_a_document_exists(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    paths = {found for found in PATH.findall(text) if "*" not in found}
    missing = {path for path in paths if not (REPOSITORY / path).exists()}
    missing |= {
        found
        for found in DOTTED.findall(text)
        if not resolves(found) and not (REPOSITORY / found).exists()
    }
    missing |= {
        found
        for found in FILE.findall(text)
        if not any(f"/{path}".endswith(f"/{found}") for path in tracked("*.py"))
    }
    assert sorted(missing) == []
