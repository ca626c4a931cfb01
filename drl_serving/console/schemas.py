"""View models of the console: small records that its templates print."""

import datetime as dt
from typing import Any, Literal

from msgspec import Struct, field

from drl_core.policy.actions import Action
from drl_serving.decisions.schemas import Decision

Standing = Literal["ok", "attention", "failed", "unknown"]
Figures = dict[str, float | None]
Interval = list[float] | None


class Fact(Struct, frozen=True):
    """One fact of the overview."""

    name: str
    value: str
    detail: str = ""
    standing: Standing = "ok"


class Sensor(Struct, frozen=True):
    """A sensor or schedule of the asset graph, as Dagster's database has it."""

    name: str
    kind: str
    result: str
    """Of the last look."""
    failed: bool
    looked: dt.datetime | None
    """Last, in UTC."""
    acted: dt.datetime | None
    """When it last started a run, in UTC."""


class SystemHealth(Struct, frozen=True, kw_only=True):
    """The overview."""

    at: dt.datetime
    facts: list[Fact]
    graph: list[Fact]
    """What is known of the asset graph from what it leaves behind."""
    sensors: list[Sensor]


class TableRow(Struct, frozen=True):
    """A decision in a table."""

    at: dt.datetime
    made: Decision


class Group(Struct, frozen=True, kw_only=True):
    """Figures within an attack type."""

    episodes: int = 0
    malicious: int = 0
    sessions: int = 0
    policies: dict[str, Figures] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)


class Gate(Struct, frozen=True, kw_only=True):
    """A gate's verdict, as it stood when the model was released."""

    passed: bool
    severity: str = "ERROR"
    reason: str = ""

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.passed:
            return "passed"
        return "refused" if self.severity == "ERROR" else "warned"


class Evaluation(Struct, frozen=True, kw_only=True):
    """What the console reads of a manifest's `evaluation`; members that it lacks are empty."""

    episodes: int = 0
    malicious: int = 0
    sessions: int = 0
    unlabelled: int = 0
    policies: dict[str, Figures] = field(default_factory=dict)
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    advantage: dict[str, Interval] = field(default_factory=dict)
    advantage_mean: Figures = field(default_factory=dict)
    per_attack_type: dict[str, Group] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gates: dict[str, Gate] = field(default_factory=dict)
    off_policy: dict[str, Any] = field(default_factory=dict)


class Matrix(Struct, frozen=True, kw_only=True):
    """How often which action of the champion met which of the challenger."""

    counts: list[list[int]]
    """5 x 5: rows are the champion's actions, columns the challenger's."""
    skipped: int

    @property
    def total(self) -> int:
        """Decisions compared."""
        return sum(map(sum, self.counts))

    @property
    def agreed(self) -> int:
        """Decisions on which both would do the same."""
        return sum(self.counts[action][action] for action in Action)
