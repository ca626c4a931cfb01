"""Health overview of the service and the asset graph: what both leave behind in, facts out.

The graph is not asked; it may be down, and its library is none of the service's. Its landing zone,
its releases, and the tables in which Dagster keeps when a sensor was last looked at, say enough.
"""

import asyncio
import datetime as dt
import time
from typing import Any

from drl_core.settings import Settings
from drl_core.storage.database import DatabaseUnavailable
from drl_core.storage.outbox import OutboxError
from drl_core.telemetry.landing import LandingZone
from drl_serving.console.schemas import Fact, Sensor, Standing, SystemHealth
from drl_serving.decisions.engine.engine import DecisionEngine
from drl_serving.decisions.state.journal import Journal
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics
from drl_serving.storage.outbox_storage import Storage
from drl_serving.telemetry.service import TelemetryService

LATE_S = 120.0
"""What waits for longer than this deserves attention."""

_DAGSTER = """
    SELECT count(*) = 3 AS here FROM unnest(ARRAY['instigators', 'job_ticks', 'runs']) AS name
    WHERE to_regclass(name) IS NOT NULL
"""
_SENSORS = """
    SELECT instigator_body::json #>> '{origin,job_name}' AS name, lower(instigator_type) AS kind,
        lower(last.status) AS result, last.timestamp AS looked, acting.timestamp AS acted
    FROM instigators
    LEFT JOIN LATERAL (
        SELECT status, timestamp FROM job_ticks WHERE selector_id = instigators.selector_id
        ORDER BY timestamp DESC LIMIT 1
    ) AS last ON true
    LEFT JOIN LATERAL (
        SELECT timestamp FROM job_ticks
        WHERE selector_id = instigators.selector_id AND status = 'SUCCESS'
        ORDER BY timestamp DESC LIMIT 1
    ) AS acting ON true
    ORDER BY kind, name
"""
_RESULTS = {"skipped": "nothing to do", "success": "started a run", "started": "at it"}
"""What Dagster's words for a tick's outcome mean."""
_RUNS = """
    SELECT status, count(*) AS runs FROM runs
    WHERE update_timestamp > now() AT TIME ZONE 'UTC' - interval '1 day' GROUP BY status
"""


class Overview:
    """Gathers the facts; from this worker's parts, what all workers share included."""

    def __init__(
        self,
        settings: Settings,
        models: ModelHolder,
        decisions: DecisionEngine,
        journal: Journal,
        telemetry: TelemetryService,
        storage: Storage,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._models = models
        self._decisions = decisions
        self._journal = journal
        self._telemetry = telemetry
        self._storage = storage
        self._metrics = metrics

    async def read(self) -> SystemHealth:
        """The overview now; the files are read in a thread, the database is waited for 2 s."""
        (facts, graph), (database, runs, sensors) = await asyncio.gather(
            asyncio.to_thread(self._files), self._database()
        )
        return SystemHealth(
            at=dt.datetime.now(dt.UTC),
            facts=[*self._model_facts(), *facts, database],
            graph=[*graph, *runs],
            sensors=sensors,
        )

    def _model_facts(self) -> list[Fact]:
        current, challenger = self._models.current, self._models.challenger
        if current is None:
            model = Fact("Model", "none", "no release has been taken; see Model", "failed")
        elif self._models.distrusted:
            model = Fact(
                "Model", current.manifest.model_version, "its key is no longer trusted", "attention"
            )
        else:
            manifest = current.manifest
            model = Fact("Model", manifest.model_version, f"release {manifest.sequence}")
        wanted = self._decisions.rules.mode
        meaning = "decides and records" if wanted == "observe" else "decisions are dispatched"
        mode = Fact("Mode", wanted, meaning)
        if challenger is None:
            return [model, Fact("Challenger", "none", "serving.challenger names one"), mode]
        return [model, Fact("Challenger", challenger.manifest.model_version), mode]

    def _files(self) -> tuple[list[Fact], list[Fact]]:
        metrics = {metric.name: metric.samples for metric in self._metrics.collect()}
        sizes = [sample.value for sample in metrics["drl_worker_resident_memory_bytes"]]
        buffered = sum(sample.value for sample in metrics["drl_telemetry_buffered_events"])
        facts = [
            self._workers(sizes),
            self._last_decision(),
            self._outbox(),
            self._landing_writable(),
            Fact("Telemetry", f"{buffered:.0f} waiting", "events not yet durable, all workers"),
        ]
        return facts, [*self._landing(), self._last_release()]

    def _workers(self, sizes: list[float]) -> Fact:
        wanted = self._settings.serving.workers
        detail = ", ".join(f"{size / 1e6:.0f} MB" for size in sizes)
        standing: Standing = "ok" if len(sizes) == wanted else "attention"
        return Fact("Workers", f"{len(sizes)} of {wanted}", detail, standing)

    def _last_decision(self) -> Fact:
        for _, entry in self._journal.newest_first(1):
            made = entry.decision
            what = f"{made.action_name.replace('_', ' ')}, {made.sandbox_id}"
            return Fact("Last decision", ago(time.time() - entry.at_ms / 1000), what)
        return Fact("Last decision", "none yet", standing="unknown")

    def _outbox(self) -> Fact:
        outbox = self._storage.outbox
        try:
            depth, age, dead = outbox.depth(), outbox.oldest_age_s(), outbox.dead_letter_count()
        except OutboxError as error:
            return Fact("Outbox", "unreadable", error.reason, "failed")
        detail = f"oldest {ago(age)}" if depth else "nothing waits for PostgreSQL"
        if dead:
            detail += f"; {dead} set aside, see drl patterns dead-letters"
        late = age > LATE_S or dead
        return Fact("Outbox", f"{depth} waiting", detail, "attention" if late else "ok")

    def _landing_writable(self) -> Fact:
        if self._telemetry.writable():
            return Fact("Landing zone", "writable")
        return Fact("Landing zone", "not writable", "telemetry is refused with 503", "failed")

    def _landing(self) -> list[Fact]:
        try:
            zone = LandingZone(self._settings.landing_path)
            waiting, keys = zone.waiting(), zone.keys()
            newest = zone.batch(keys[-1]) if keys else None
        except OSError as error:
            return [Fact("Landed segments", "unreadable", error.strerror or "", "failed")]
        age = time.time() - int(waiting[0].partition("-")[0]) / 1e9 if waiting else 0.0
        landed = Fact(
            "Landed segments",
            f"{len(waiting)} in no batch",
            f"oldest {ago(age)}" if waiting else "all are in batches",
            "attention" if age > LATE_S else "ok",
        )
        if newest is None:
            return [landed, Fact("Last batch", "none yet", standing="unknown")]
        sealed = (
            dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(newest.sealed_at)
        ).total_seconds()
        detail = f"{newest.key}, {newest.events} events, {len(keys)} batches in all"
        return [landed, Fact("Last batch", ago(sealed), detail)]

    def _last_release(self) -> Fact:
        try:
            releases = self._models.store.releases()
            if not releases:
                return Fact("Last release", "none yet", standing="unknown")
            newest = releases[-1]
            age = time.time() - newest.stat().st_mtime
        except OSError as error:
            return Fact("Last release", "unreadable", error.strerror or "", "failed")
        return Fact(
            "Last release", ago(age), f"number {int(newest.stem)}, {len(releases)} in the store"
        )

    async def _database(self) -> tuple[Fact, list[Fact], list[Sensor]]:
        pool = self._storage.database
        if pool is None:
            none = Fact("PostgreSQL", "not configured", "no decision log, no patterns", "unknown")
            return none, [], []
        began = time.perf_counter()
        try:
            [found] = await pool.fetch(_DAGSTER)
            took = f"answered in {(time.perf_counter() - began) * 1000:.0f} ms"
            sensors = await pool.fetch(_SENSORS) if found["here"] else []
            runs = await pool.fetch(_RUNS) if found["here"] else []
        except DatabaseUnavailable:
            gone = Fact("PostgreSQL", "does not answer", "decisions are not affected", "attention")
            return gone, [], []
        return Fact("PostgreSQL", "answers", took), _runs(runs), [_sensor(row) for row in sensors]


def ago(seconds: float) -> str:
    """A duration since something, for people."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0.0):.0f} s ago"


def _runs(rows: list[dict[str, Any]]) -> list[Fact]:
    counts = {str(row["status"]).lower(): int(row["runs"]) for row in rows}
    counted = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    standing: Standing = "attention" if counts.get("failure") else "ok"
    return [Fact("Runs of the last day", counted or "none", standing=standing)]


def _sensor(row: dict[str, Any]) -> Sensor:
    return Sensor(
        name=str(row["name"]),
        kind=str(row["kind"]),
        result=_RESULTS.get(row["result"], row["result"] or "not yet looked at"),
        failed=row["result"] == "failure",
        looked=row["looked"],
        acted=row["acted"],
    )
