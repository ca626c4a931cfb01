"""Parquet tables by batch: whole files, compaction that survives a crash at any of its steps."""

from pathlib import Path

import msgspec
import polars as pl
import pytest

from drl_assets.tables import store as tables
from drl_assets.tables.store import MissingBatchError, Tables

KEYS = [f"{n:08d}-aa" for n in (1, 2, 3)]
ROWS = {"sandbox_id": ["s"] * 2, "episode_id": ["e"] * 2, "step": [0, 1]}


@pytest.fixture
def filled(tmp_path: Path) -> Tables:
    store = Tables(tmp_path)
    for number, key in enumerate(KEYS):
        for table in tables.TABLES:
            store.write(table, key, pl.DataFrame({**ROWS, "value": [number, number + 10]}))
    return store


def rows(store: Tables, without: set[str] | None = None) -> list[tuple[str, int]]:
    scan = store.scan("experiences", without)
    return [] if scan is None else sorted(scan.select("batch", "value").collect().iter_rows())


WHOLE = [(key, n + more) for n, key in enumerate(KEYS) for more in (0, 10)]


def test_a_batch_is_read_back_and_replaced_whole(filled: Tables) -> None:
    assert rows(filled) == WHOLE
    filled.write("experiences", KEYS[0], pl.DataFrame({**ROWS, "value": [7, 8]}))
    assert filled.read("experiences", KEYS[0])["value"].to_list() == [7, 8]
    assert filled.keys("experiences") == KEYS
    with pytest.raises(MissingBatchError, match="has not been materialised"):
        filled.read("experiences", "00000009-aa")
    assert Tables(filled.root / "empty").scan("experiences") is None


@pytest.mark.property(31)
def test_a_scan_leaves_batches_out_and_does_not_open_their_files(filled: Tables) -> None:
    filled.path("experiences", KEYS[1]).write_bytes(b"no parquet")
    assert rows(filled, {KEYS[1]}) == [row for row in WHOLE if row[0] != KEYS[1]]
    assert rows(filled, {*KEYS}) == []


def test_compacting_keeps_every_row_with_its_batch(filled: Tables) -> None:
    filled.compact("2026-11-21", KEYS[:1])
    filled.compact("2026-11-21", KEYS[1:2])
    assert rows(filled) == WHOLE
    assert filled.keys("experiences") == KEYS[2:]
    assert filled.done("experiences") == {*KEYS}
    assert rows(filled, {KEYS[0]}) == WHOLE[2:]
    assert filled.compacted() == {"2026-11-21": KEYS[:2]}
    filled.compact("2026-11-21", KEYS[:2])
    assert rows(filled) == WHOLE


@pytest.mark.property(4)
@pytest.mark.parametrize("steps", range(8))
def test_a_compaction_killed_at_any_step_loses_and_doubles_nothing(
    filled: Tables, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Cut off before the n-th of its writes and removals."""
    left = [steps]

    def kill_before(run: object) -> object:
        def counted(*arguments: object, **named: object) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return run(*arguments, **named)  # type: ignore[operator]

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(tables, "write_atomically", kill_before(tables.write_atomically))
        patched.setattr(Path, "unlink", kill_before(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            filled.compact("2026-11-21", KEYS[:2])
    assert rows(filled) == WHOLE
    filled.compact("2026-11-21", KEYS[:2])
    assert rows(filled) == WHOLE
    assert filled.keys("experiences") == KEYS[2:]


def test_a_refused_batch_is_not_read_until_it_is_written_again(filled: Tables) -> None:
    filled.refuse("experiences", KEYS[0], "broken")
    assert rows(filled) == WHOLE[2:]
    filled.write("experiences", KEYS[0], filled.read("experiences", KEYS[1]).drop("batch"))
    assert len(rows(filled)) == 6


def test_the_record_is_plain(filled: Tables) -> None:
    filled.compact("2026-11-21", KEYS)
    raw = (filled.root / "compacted.json").read_bytes()
    assert msgspec.json.decode(raw) == {"2026-11-21": KEYS}
