"""Input validation of raw float rows: the one check between a caller's numbers and the model.

Windows and carries come in as float64 tables from V2 over HTTP or gRPC and from the raw rows of the
decision route, and reach the model only if they could have come from a telemetry event and the
fold. It fails closed: what is out of range is refused and named, never clipped.
"""

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import MAX_ISOLATION_LEVEL
from drl_core.policy.features import CARRY_WIDTH, SIGNAL_COUNT, WINDOW_WIDTH, Array
from drl_core.telemetry.event import SIGNALS
from drl_serving.http.problems import Problem

MIN_WINDOW_S, MAX_WINDOW_S = 0.001, 86_400.0
"""The contract's bounds of an event's `window_s`."""
MAX_COUNT = 3.4028234e38
"""The contract's bound of a signal: the greatest float32."""
MAX_WINDOWS = 2.0**31
"""The contract's bound of an episode's steps."""

WINDOW_COLUMNS = (*SIGNALS, "window_s", "isolation_level")
CARRY_COLUMNS = (*(f"sum_{name}" for name in SIGNALS), "windows", "seconds")

_MARGIN = 1.0 + 1e-9
"""Of rounding: each window adds at most 1 to a sum, and at most MAX_WINDOW_S seconds."""
_SWITCHES = slice(9, SIGNAL_COUNT)  # the three booleans
_WINDOW_LOW = np.array([0.0] * SIGNAL_COUNT + [MIN_WINDOW_S, 0.0])
_WINDOW_HIGH = np.array([MAX_COUNT] * 9 + [1.0] * 3 + [MAX_WINDOW_S, MAX_ISOLATION_LEVEL])
_NEXT = "Fix the named value and send the request again; docs/open-inference.md has the ranges."


def validate(windows: Array, carry: Array) -> None:
    """Refuse rows that no telemetry event and no fold of such events could have made.

    Args:
        windows: float64 [N, 14]; NaN in the first 12 columns is the contract's "not measured".
        carry: float64 [N, 14]: running sums, number of windows, seconds.

    Raises:
        Problem: 400, naming input, row and column of the first wrong value.
    """
    _shape("windows", windows, WINDOW_WIDTH)
    _shape("carry", carry, CARRY_WIDTH)
    if len(windows) != len(carry):
        raise _refuse("carry", f"{len(carry)} rows for {len(windows)} windows; one each expected")
    if not is_sound(windows, carry):
        _name_the_wrong(windows, carry)
        raise _refuse("windows", "a value is out of the contract")


def is_sound(windows: Array, carry: Array) -> bool:
    """Whether tables of the right shapes hold only values that `validate` accepts."""
    switches, past = windows[:, _SWITCHES], carry[:, SIGNAL_COUNT]
    level, most = windows[:, -1], past[:, None] * _MARGIN
    return bool(
        not (windows < _WINDOW_LOW).any()
        and not (windows > _WINDOW_HIGH).any()
        and not np.isnan(windows[:, SIGNAL_COUNT:].min())
        and not ((switches > 0.0) & (switches < 1.0)).any()
        and (level == np.floor(level)).all()
        and carry.min() >= 0.0  # False where one is NaN
        and carry.max() < np.inf
        and past.max() <= MAX_WINDOWS
        and (past == np.floor(past)).all()
        and (carry[:, :SIGNAL_COUNT] <= most).all()
        and (carry[:, -1] <= most[:, 0] * MAX_WINDOW_S).all()
    )


def _name_the_wrong(windows: Array, carry: Array) -> None:
    wrong = (windows < _WINDOW_LOW) | (windows > _WINDOW_HIGH)
    wrong[:, SIGNAL_COUNT:] |= np.isnan(windows[:, SIGNAL_COUNT:])
    whole = windows[:, _SWITCHES]
    wrong[:, _SWITCHES] |= (whole != 0.0) & (whole != 1.0) & ~np.isnan(whole)
    level = windows[:, -1]
    wrong[:, -1] |= level != np.floor(level)
    _report("windows", WINDOW_COLUMNS, windows, wrong)
    past = carry[:, SIGNAL_COUNT]
    wrong = ~((carry >= 0.0) & (carry < np.inf))
    most = np.maximum(past, 0.0) * _MARGIN
    wrong[:, :SIGNAL_COUNT] |= carry[:, :SIGNAL_COUNT] > most[:, None]
    wrong[:, SIGNAL_COUNT] |= (past != np.floor(past)) | (past > MAX_WINDOWS)
    wrong[:, -1] |= carry[:, -1] > most * MAX_WINDOW_S
    _report("carry", CARRY_COLUMNS, carry, wrong)


def _shape(name: str, table: Array, width: int) -> None:
    if table.dtype != np.float64 or table.ndim != 2 or table.shape[1] != width:
        raise _refuse(name, f"is {table.dtype} {list(table.shape)}, expected FP64 [-1, {width}]")
    if not len(table):
        raise _refuse(name, "has no rows, at least one is expected")


def _report(
    name: str, columns: tuple[str, ...], table: Array, wrong: npt.NDArray[np.bool_]
) -> None:
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        value = float(table[row, column])
        raise _refuse(
            f"{name}[{row}][{column}]", f"{columns[column]} is {value:g}, out of the contract"
        )


def _refuse(field: str, message: str) -> Problem:
    return Problem(400, "invalid-rows", f"{field}: {message}", _NEXT, field=field)
