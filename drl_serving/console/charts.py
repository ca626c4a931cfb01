"""Chart geometry: numbers in, a `Chart` in units of its SVG drawing out.

The template `charts.html` draws it as SVG, in the page and without a script. Beside each stands the
table that it was made from.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

LEFT, WIDTH, ROW, TOP, FOOT, RIGHT = 190, 640, 26, 8, 26, 84
"""Room for names, of all, of a row, above, for the axis, and for values."""


class Value(Struct, frozen=True):
    """A row to be drawn; an empty interval draws no whiskers."""

    name: str
    value: float | None
    interval: Sequence[float] | None = None
    strong: bool = False
    """Ours, or the chosen one."""
    note: str = ""


class Mark(Struct, frozen=True):
    """A row in units of the drawing."""

    name: str
    text: str
    y: float
    x: float | None
    zero: float
    low: float | None
    high: float | None
    strong: bool
    note: str


class Chart(Struct, frozen=True):
    """A drawing of rows over one axis."""

    title: str
    description: str
    bars: bool
    """Bars from zero, else points with whiskers."""
    height: float
    marks: list[Mark]
    ticks: list[tuple[float, str]]


def chart(title: str, rows: Sequence[Value], *, bars: bool = False, unit: str = "") -> Chart | None:
    """A chart of rows, None where no row has a value.

    Args:
        title: what is drawn.
        rows: in the order in which they are drawn.
        bars: whether the length from zero is what counts.
        unit: "%" shows shares as per cent.
    """
    shown = [row for row in rows if row.value is not None and math.isfinite(row.value)]
    if not shown:
        return None
    ends = [end for row in shown for end in (row.value or 0.0, *(row.interval or ()))]
    ticks = _ticks(min(0.0, *ends), max(0.0, *ends))
    low, high = ticks[0], ticks[-1]

    def at(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    marks = [
        Mark(
            name=row.name,
            text="–" if row.value is None else _number(row.value, unit),  # noqa: RUF001
            y=TOP + ROW * number + ROW / 2,
            x=None if row.value is None else at(row.value),
            zero=at(0.0),
            low=at(row.interval[0]) if row.interval else None,
            high=at(row.interval[1]) if row.interval else None,
            strong=row.strong,
            note=row.note,
        )
        for number, row in enumerate(rows)
    ]
    description = "; ".join(f"{mark.name} {mark.text}" for mark in marks)
    drawn = [(at(tick), _number(tick, unit, digits=_digits(ticks))) for tick in ticks]
    return Chart(title, description, bars, TOP + ROW * len(rows) + FOOT, marks, drawn)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if high - low < 1e-12:
        high = low + 1.0
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    return max(0, min(6, 1 - math.floor(math.log10(ticks[1] - ticks[0]))))


def _number(value: float, unit: str, digits: int = 3) -> str:
    if unit == "%":
        return f"{value * 100:.{max(digits - 2, 0)}f} %"
    return f"{value:z.{digits}f}"
