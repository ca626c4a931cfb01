"""Parquet table store: one file a batch (partition), old batches compacted by day.

    <root>/<table>/<batch key>.parquet
    <root>/<table>/day-<date>.parquet     the rows of that day's compacted batches
    <root>/<table>/<batch key>.refused      a check that blocks refused the batch beside it
    <root>/compacted.json                 day -> batch keys

Every row carries its `batch`, so a compacted table still says which batch taught what.
"""

import io
from pathlib import Path

import msgspec
import polars as pl

from drl_core.files import write_atomically

TABLES = ("telemetry_batches", "normalized_states", "experiences")


class MissingBatchError(KeyError):
    """A batch that has not been materialised."""


class Tables:
    """A folder of tables."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, table: str, key: str) -> Path:
        """Where a batch of a table is."""
        return self.root / table / f"{key}.parquet"

    def write(self, table: str, key: str, frame: pl.DataFrame) -> Path:
        """Replace a batch, in one rename; adds the column `batch`."""
        path = self.path(table, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        frame.with_columns(batch=pl.lit(key)).write_parquet(buffer, compression="zstd")
        write_atomically(path, buffer.getvalue())
        path.with_suffix(".refused").unlink(missing_ok=True)
        return path

    def refuse(self, table: str, key: str, reason: str) -> None:
        """Keep a batch out of `keys` and `scan` until it is written again."""
        write_atomically(self.path(table, key).with_suffix(".refused"), reason.encode())

    def read(self, table: str, key: str) -> pl.DataFrame:
        """One batch.

        Raises:
            MissingBatchError: it has not been materialised, or was compacted.
        """
        path = self.path(table, key)
        if not path.exists():
            raise MissingBatchError(f"batch {key} of {table} has not been materialised")
        return pl.read_parquet(path)

    def keys(self, table: str) -> list[str]:
        """Live batches, oldest first."""
        return [p.stem for p in self._accepted(table) if not p.stem.startswith("day-")]

    def _accepted(self, table: str) -> list[Path]:
        found = sorted((self.root / table).glob("*.parquet"))
        return [path for path in found if not path.with_suffix(".refused").exists()]

    def done(self, table: str) -> set[str]:
        """Every batch that was materialised, compacted ones included."""
        return {*self.keys(table), *(key for day in self.compacted().values() for key in day)}

    def scan(self, table: str, without: set[str] | None = None) -> pl.LazyFrame | None:
        """All rows of a table, compacted ones included; None where there are none.

        Args:
            table: its name.
            without: batch keys to leave out; files that hold nothing else are not opened.
        """
        without = without or set()
        days = self.compacted()
        parts = [
            pl.scan_parquet(path).filter(pl.col("batch").is_in(sorted({*keys} - without)))
            for day, keys in sorted(days.items())
            if not {*keys} <= without and (path := self.path(table, f"day-{day}")).exists()
        ]
        done = {key for keys in days.values() for key in keys}
        live = [self.path(table, key) for key in self.keys(table) if key not in without | done]
        if live:
            parts.append(pl.scan_parquet(live))
        return pl.concat(parts) if parts else None

    def compacted(self) -> dict[str, list[str]]:
        """Day -> keys of the batches that its file holds."""
        path = self.root / "compacted.json"
        if not path.exists():
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])

    def compact(self, day: str, keys: list[str]) -> None:
        """Merge batches into their day's file, then remove them; safe to repeat after a crash.

        The record switches readers over in one rename: until it names a batch, `scan` reads the
        batch's own file, from then on the day's. Refused batches are removed, not merged.
        """
        record = self.compacted()
        done = record.get(day, [])
        for table in TABLES:
            target = self.path(table, f"day-{day}")
            live = sorted(({*keys} - {*done}) & {*self.keys(table)})
            parts = [pl.read_parquet(self.path(table, key)) for key in live]
            if target.exists():
                parts.insert(0, pl.read_parquet(target).filter(pl.col("batch").is_in(done)))
            if parts:
                buffer = io.BytesIO()
                pl.concat(parts).write_parquet(buffer, compression="zstd")
                write_atomically(target, buffer.getvalue())
        record[day] = sorted({*done, *keys})
        write_atomically(self.root / "compacted.json", msgspec.json.encode(record))
        for table in TABLES:
            for key in keys:
                self.path(table, key).unlink(missing_ok=True)
                self.path(table, key).with_suffix(".refused").unlink(missing_ok=True)
