"""Dependency resolution as on a machine with plain PyPI: `make check-resolution`.

For each Python that the project supports, resolves everything under constraints.txt, with no other
index, wheel folder or constraint than PyPI's. Only metadata is read: no package is downloaded.
Fails where a package would come in a version that constraints.txt does not name (then nobody has
tested it), or torch in another number than one. Skips only where no index answers at all.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

PYTHONS = ("3.11", "3.12", "3.13")
CONFIGURATION = ("PIP_", "UV_FIND_LINKS", "UV_INDEX", "UV_EXTRA_INDEX", "UV_CONSTRAINT", "UV_OVER")
"""Beginnings of the variables that a build machine may have and a fresh one has not."""

CUDA = re.compile(r"(cuda|nvidia)-|triton==")
"""What PyPI's torch for Linux brings, in versions that torch itself pins."""


def main() -> int:
    index = os.environ.get("UV_DEFAULT_INDEX", "https://pypi.org/simple")
    try:
        urlopen(f"{index.rstrip('/')}/torch/", timeout=20).close()  # noqa: S310 # as uv will
    except HTTPError:
        pass  # an index that answers; uv says what is wrong
    except OSError as cause:
        print(f"check-resolution: skipped, no package index can be reached ({cause})")
        return 0
    lines = Path("constraints.txt").read_text().splitlines()
    tested = {line.partition(";")[0].strip() for line in lines}
    return max([check(python, tested) for python in PYTHONS])


def check(python: str, tested: set[str]) -> int:
    packages = resolve(python)
    torch = [package for package in packages if package.startswith("torch==")]
    untested = [name for name in packages if name not in tested and not CUDA.match(name)]
    print(f"check-resolution: Python {python}: {len(packages)} packages, {' '.join(torch)}")
    if untested:
        print(f"check-resolution: not in constraints.txt (`make constraints`): {untested}")
    return 1 if untested or len(torch) != 1 else 0


def resolve(python: str) -> list[str]:
    """`name==version` of every package, the tools of development and documentation included."""
    fresh = {name: at for name, at in os.environ.items() if not name.startswith(CONFIGURATION)}
    uv = Path(sys.executable).with_name("uv")
    target = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
    source = ["--extra", "dev", "--extra", "docs", "-c", "constraints.txt", "pyproject.toml"]
    output = ["--quiet", "--no-config", "--no-header", "--no-annotate"]
    command = [uv, "pip", "compile", *target, *source, *output]
    return subprocess.run(command, env=fresh, check=True, stdout=-1, text=True).stdout.split()


if __name__ == "__main__":
    sys.exit(main())
