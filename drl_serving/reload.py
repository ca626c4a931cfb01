"""Configuration reload: what a running service takes of changed files, and what needs a restart.

`Watcher` polls the files. `reload` compares the settings in force with the changed ones, by the
metadata of the fields: the reloadable ones are taken, the others stay as they are and are named.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec import Meta, Struct

from drl_core.settings import Settings, load


class Reload(Struct, frozen=True):
    """What becomes of a change."""

    settings: Settings
    """In force from now on: the reloadable fields of the new settings, all others as before."""
    taken: tuple[str, ...]
    """Changed fields that are in force, such as `serving.mode`."""
    needs_restart: tuple[str, ...]
    """Changed fields that are not in force before the next start, such as `serving.port`."""


def reload(in_force: Settings, changed: Settings) -> Reload:
    """Take the reloadable fields of changed settings, and those only."""
    settings, taken, needs_restart = in_force, [], []
    for path, reloadable in FIELDS.items():
        *sections, name = path.split(".")
        before, after = in_force, changed
        for section in sections:
            before, after = getattr(before, section), getattr(after, section)
        value = getattr(after, name)
        if value == getattr(before, name):
            continue
        if reloadable:
            settings = _replaced(settings, path, value)
            taken.append(path)
        else:
            needs_restart.append(path)
    return Reload(settings, tuple(taken), tuple(needs_restart))


def _replaced(struct: Any, path: str, value: object) -> Any:
    name, _, rest = path.partition(".")
    if rest:
        value = _replaced(getattr(struct, name), rest, value)
    return msgspec.structs.replace(struct, **{name: value})


def _fields(kind: type[Struct], prefix: str, reloadable: bool) -> Iterator[tuple[str, bool]]:
    hints = get_type_hints(kind, include_extras=True)
    for name in kind.__struct_fields__:
        marks = getattr(hints[name], "__metadata__", ())
        marked = reloadable or any(
            isinstance(mark, Meta) and (mark.extra or {}).get("reload") for mark in marks
        )
        bare = getattr(hints[name], "__origin__", hints[name])
        if isinstance(bare, type) and issubclass(bare, Struct):
            yield from _fields(bare, f"{prefix}{name}.", marked)
        else:
            yield f"{prefix}{name}", marked


FIELDS: Mapping[str, bool] = dict(_fields(Settings, "", reloadable=False))
"""Every field of `Settings` by its path, and whether it is reloadable."""


class Watcher:
    """Polls the files of the configuration; a file that cannot be used leaves the old settings."""

    def __init__(self, folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self._folder = folder or Path(environ.get("DRL_CONFIG", "config"))
        self._environ = environ
        self._stamp = self._stamps()
        self.current = load(self._folder, environ)

    def poll(self) -> bool:
        """True where a change was taken.

        Raises:
            SettingsError: the changed files are not usable; `current` is as before.
        """
        stamp = self._stamps()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.current = load(self._folder, self._environ)
        return True

    def _stamps(self) -> tuple[tuple[str, int, int], ...]:
        found = sorted(self._folder.glob("*.json"))
        return tuple((p.name, (s := p.stat()).st_mtime_ns, s.st_size) for p in found)
