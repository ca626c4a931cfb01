"""Configuration reload by the fields' own metadata, which docs/operations.md shows in a table."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drl_core.settings import Serving, Settings
from drl_serving.reload import FIELDS, reload

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
QUOTED = r'"\1"'
COMMON_PREFIX = "costs.damage"
PER_RUN = ("learning", "retraining", "gates", "alerts", "costs")


def test_reloadable_fields_are_taken_and_the_others_named() -> None:
    before = Settings(home="a", serving=Serving(mode="observe", port=1000))
    after = Settings(home="b", serving=Serving(mode="enforce", port=2000, max_batch=7))
    change = reload(before, after)
    assert change.settings == Settings(
        home="a", serving=Serving(mode="enforce", port=1000, max_batch=7)
    )
    assert change.taken == ("serving.mode", "serving.max_batch")
    assert change.needs_restart == ("home", "serving.port")


def test_settings_that_are_the_same_change_nothing() -> None:
    change = reload(Settings(), Settings())
    assert (change.settings, change.taken, change.needs_restart) == (Settings(), (), ())


@pytest.mark.parametrize("section", PER_RUN)
def test_what_each_run_of_the_asset_graph_reads_needs_no_restart(section: str) -> None:
    assert all(FIELDS[path] for path in FIELDS if path.startswith(f"{section}."))


def default(path: str) -> Any:
    value: Any = Settings()
    for name in path.split("."):
        value = getattr(value, name)
    return value


def table() -> dict[str, tuple[bool, Any]]:
    """The fields in the table: whether marked with *, and the default."""
    text = OPERATIONS.read_text().partition("| field | default | |\n")[2].partition("\n\n")[0]
    found: dict[str, tuple[bool, Any]] = {}
    for line in text.splitlines()[1:]:
        names, shown = (cell.strip() for cell in line.split("|")[1:3])
        listed = re.findall(r"`([a-z_.0-9]+)`(\*?)", names)
        first = listed[0][0]
        section = first.rpartition(".")[0]
        defaults = json.loads(f"[{re.sub('`([^`{]*)`', QUOTED, shown).replace('`', '')}]")
        if len(defaults) == 1:
            defaults *= len(listed)  # of all of them
        for (name, star), value in zip(listed, defaults, strict=True):
            if name.startswith("_"):  # after `costs.damage_presence`: `_file_writes`
                name = f"{COMMON_PREFIX}{name}"
            path = name if "." in name or not section else f"{section}.{name}"
            found[path] = (bool(star), value)
    return found


def test_the_operators_table_has_every_field_with_its_default_and_its_mark() -> None:
    assert table() == {
        path: (
            reloadable and path.partition(".")[0] not in PER_RUN,
            json.loads(msgspec.json.encode(default(path))),
        )
        for path, reloadable in FIELDS.items()
    }
