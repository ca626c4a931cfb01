"""The tables between the stages: one Parquet file a batch, old batches compacted by day.

    <root>/<table>/<batch key>.parquet
    <root>/<table>/day-<date>.parquet     the rows of that day's compacted batches
    <root>/compacted.json                 day -> batch keys

Every row carries its `batch`, so a compacted table still says which batch taught what.
"""

import io
from pathlib import Path

import msgspec
import polars as pl

from drl_core.landing import write_atomically

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
        return path

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
        folder = self.root / table
        return sorted(p.stem for p in folder.glob("*.parquet") if not p.stem.startswith("day-"))

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
        compacted = self.compacted()
        files = [
            path
            for path in sorted((self.root / table).glob("*.parquet"))
            if not self._keys_of(path, compacted) <= without
        ]
        if not files:
            return None
        return pl.scan_parquet(files).filter(~pl.col("batch").is_in(list(without)))

    def compacted(self) -> dict[str, list[str]]:
        """Day -> keys of the batches that its file holds."""
        path = self.root / "compacted.json"
        if not path.exists():
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])

    def compact(self, day: str, keys: list[str]) -> None:
        """Merge batches into their day's file, then remove them; safe to repeat after a crash."""
        record = self.compacted()
        done = record.setdefault(day, [])
        for table in TABLES:
            target = self.path(table, f"day-{day}")
            parts = [path for key in keys if (path := self.path(table, key)).exists()]
            if target.exists():
                parts.insert(0, target)
            if parts:
                merged = pl.concat([pl.read_parquet(path) for path in parts])
                unique = ["batch", "sandbox_id", "episode_id", "step"]
                merged = merged.unique(unique, keep="first", maintain_order=True)
                buffer = io.BytesIO()
                merged.write_parquet(buffer, compression="zstd")
                write_atomically(target, buffer.getvalue())
        record[day] = sorted({*done, *keys})
        write_atomically(self.root / "compacted.json", msgspec.json.encode(record))
        for table in TABLES:
            for key in keys:
                self.path(table, key).unlink(missing_ok=True)

    @staticmethod
    def _keys_of(path: Path, compacted: dict[str, list[str]]) -> set[str]:
        day = path.stem.removeprefix("day-")
        return (
            set(compacted[day])
            if path.stem.startswith("day-") and day in compacted
            else {path.stem}
        )
