"""The tables, and the reach of every figure: what was asked for, what came out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.serving.closed import CONNECTIONS, Row

OURS, BARE, IN_PROCESS = "drl", "bare ASGI", "ONNX Runtime, in-process"
LOADED = 16
"""Connections at which processor time is compared."""


@dataclass(frozen=True)
class Reach:
    """One goal."""

    what: str
    reached: float
    goal: float
    at_least: bool = False

    @property
    def held(self) -> bool:
        """Whether it is reached."""
        return self.reached >= self.goal if self.at_least else self.reached <= self.goal

    def line(self) -> str:
        """As text."""
        sign = ">=" if self.at_least else "<="
        said = "held" if self.held else "MISSED"
        return f"  {self.what:52} {self.reached:9.2f}   {sign} {self.goal:<7g} {said}"


def reaches(figures: Mapping[str, Any]) -> list[Reach]:
    """All goals that the figures tell something about."""
    return [*_closed(figures), *_opened(figures), *_overload(figures)]


def _closed(figures: Mapping[str, Any]) -> Iterator[Reach]:
    rows: Mapping[str, Row] = figures.get("rows", {})
    if OURS not in rows:
        return
    ours = rows[OURS]
    cpu = median(ours.cpu_us[LOADED])
    goals = {"MLServer": 0.30, "BentoML": 0.15, "LitServe": 0.15, "FastAPI": 0.70, BARE: 1.3}
    for name, goal in goals.items():
        if name in rows:
            yield Reach(
                f"CPU per request / {name}'s", cpu / median(rows[name].cpu_us[LOADED]), goal
            )
    for name in ("MLServer", "LitServe"):
        if name in rows:
            ratio = median(ours.p50_ms[1]) / median(rows[name].p50_ms[1])
            yield Reach(f"p50 at one connection / {name}'s", ratio, 0.20)
    batches = figures.get("batches")
    if batches:
        ratio = median(batches["drl, raw rows"]) / median(batches[IN_PROCESS])
        yield Reach("1024 raw rows / in-process ONNX Runtime", ratio, 0.8, at_least=True)
    if "MLServer" in rows:
        yield Reach("memory (PSS) / MLServer's", ours.pss_mb / rows["MLServer"].pss_mb, 0.45)
    yield Reach("start to first decision, s", median(ours.start_s), 1.0)


def _opened(figures: Mapping[str, Any]) -> Iterator[Reach]:
    if "poisson" not in figures:
        return
    found = figures["poisson"][OURS]
    yield Reach("Poisson 300/s, two workers: p99, ms", found["latency_ms"]["p99"], 5.0)
    yield Reach("Poisson 300/s, two workers: p99.9, ms", found["latency_ms"]["p99.9"], 10.0)
    yield Reach("two workers' memory (PSS), MB", found["memory_mb"]["pss"], 200.0)


def _overload(figures: Mapping[str, Any]) -> Iterator[Reach]:
    for limit, found in figures.get("overload", {}).items():
        name = f"overload, max_in_flight {limit}"
        grown = found["memory_pss_mb"]["peak"] - found["memory_pss_mb"]["before"]
        p99 = found["accepted_ms"]["p99"]
        yield Reach(f"{name}: p99 / uncontended", p99 / found["uncontended_ms"]["p99"], 2.0)
        yield Reach(f"{name}: p99 / at capacity", p99 / found["closed_loop_ms"]["p99"], 2.0)
        yield Reach(f"{name}: growth of memory (PSS), MB", grown, 50.0)
        yield Reach(f"{name}: no Retry-After", found["refused_without_retry_after"], 0)
        yield Reach(f"{name}: connections lost", found["connections_lost"], 0)
        yield Reach(f"{name}: seconds to recover", found["recovery_s"], 5.0)


def text(figures: Mapping[str, Any]) -> str:
    """Everything, for people."""
    parts = [_machine(figures["machine"])]
    if "rows" in figures:
        parts += [_servers(figures["rows"]), _batches(figures["batches"])]
    if "poisson" in figures:
        parts.append(_poisson(figures["poisson"]))
    parts += [_storm(limit, found) for limit, found in figures.get("overload", {}).items()]
    parts.append("\n".join(["Reach", *(one.line() for one in reaches(figures))]))
    return "\n\n".join(parts)


def _machine(machine: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in machine.items())


def _range(values: Sequence[float], digits: int = 0) -> str:
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def _servers(rows: Mapping[str, Row]) -> str:
    lines = [
        "One worker, closed loop; medians of rounds (least..most)",
        f"{'':14}{'conns':>6}  {'CPU-us/request':22}{'requests/s':22}{'p50 ms':22}"
        f"{'p99 ms':24}client",
    ]
    for name, row in rows.items():
        if not row.cpu_us:
            continue
        for connections in CONNECTIONS:
            lines.append(
                f"{name if connections == 1 else '':14}{connections:>6}  "
                f"{_range(row.cpu_us[connections]):22}{_range(row.per_s[connections]):22}"
                f"{_range(row.p50_ms[connections], 2):22}{_range(row.p99_ms[connections], 2):24}"
                f"{median(row.client_share[connections]):.0%}"
            )
    lines += ["", f"{'':14}{'start, s':20}{'PSS MB':>8}{'RSS MB':>8}{'errors':>8}  PostgreSQL's"]
    for name, row in rows.items():
        if not row.start_s:
            continue  # another way to ask a server that has a line
        start = _range(row.start_s, 2)
        beside = f"{median(row.database_us):.0f} us" if row.database_us else ""
        lines.append(
            f"{name:14}{start:20}{row.pss_mb:8.0f}{row.rss_mb:8.0f}{row.errors:8}  {beside}"
        )
    return "\n".join(lines)


def _batches(batches: Mapping[str, Sequence[float]]) -> str:
    lines = ["Batches of 1024 rows, rows/s over two connections"]
    lines += [f"  {name:28}{_range(values)}" for name, values in batches.items()]
    return "\n".join(lines)


def _tail(tail: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in tail.items())


def _poisson(found: Mapping[str, Any]) -> str:
    lines = ["Open loop: Poisson arrivals at 300/s, two workers; ms from when each was due"]
    for name, one in found.items():
        lines.append(
            f"  {name:8}{_tail(one['latency_ms'])}   ({one['requests']}, failed {one['failed']})"
        )
        lines.append(f"  {'':8}the sender's own jitter: {_tail(one['sender_jitter_ms'])}")
        lines.append(
            f"  {'':8}memory MB: PSS {one['memory_mb']['pss']:.0f}, "
            f"RSS {one['memory_mb']['rss']:.0f}"
        )
    return "\n".join(lines)


def _storm(limit: int, found: Mapping[str, Any]) -> str:
    capacity = found["capacity_per_s"]
    memory = found["memory_pss_mb"]
    shares = ", ".join(f"{share:.0%}" for share in found["client_cpu_share"])
    return "\n".join(
        [
            "Overload, one worker on a core, 500 connections from the other, "
            f"max_in_flight {limit}",
            f"  capacity {capacity:.0f}/s; offered {found['offered_per_s'] / capacity:.1f} times, "
            f"sent {found['sent_per_s'] / capacity:.1f} times; accepted "
            f"{found['accepted_per_s']:.0f}/s; statuses {found['statuses']}",
            f"  refused without Retry-After {found['refused_without_retry_after']}, connections "
            f"lost {found['connections_lost']}; load generators' processor shares {shares}",
            f"  accepted, ms: {_tail(found['accepted_ms'])}",
            f"  uncontended, ms: {_tail(found['uncontended_ms'])}",
            f"  closed loop at capacity, ms: {_tail(found['closed_loop_ms'])}",
            f"  PSS MB: before {memory['before']:.0f}, peak {memory['peak']:.0f}, after "
            f"{memory['after']:.0f}; p99 below {found['recovered_below_ms']:.1f} ms again after "
            f"{found['recovery_s']:.1f} s",
        ]
    )


def plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    rows = {name: vars(row) for name, row in figures.get("rows", {}).items()}
    goals = [
        {"what": one.what, "reached": one.reached, "goal": one.goal, "held": one.held}
        for one in reaches(figures)
    ]
    return {**figures, "rows": rows, "reach": goals}
