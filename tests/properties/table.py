"""The table of the 44 correctness properties: number, sentence, tests, and the result of a run.

`python -m tests.properties.table` collects the tests that carry `@pytest.mark.property(n)`, runs
just those, and prints a row for each number. It exits with 1 where a number that is due has no test
or a test failed. Numbers in `OPEN` belong to parts that do not exist yet, and say which.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping

import pytest

SENTENCES = {
    1: "An accepted event is durable and visible to the decision loop at once",
    2: "Any valid event survives every encoding unchanged",
    3: "No bytes crash the parser; an error names the field",
    4: "An acknowledged event is never lost and is in exactly one batch",
    5: "Redelivering an event changes nothing",
    6: "Steps out of order are ordered, gaps are flagged",
    7: "The stream buffer is bounded and applies back-pressure",
    8: "Concurrent streams never mix episodes",
    9: "The state has 30 entries for every accepted event",
    10: "Every entry is finite and in [0, 1]",
    11: "Missing fields take their defaults; null differs from 0",
    12: "The fold gives the same states however events are batched",
    13: "Asset graph, service and ONNX graph agree to 1e-6",
    14: "Changing a label or outcome changes no feature",
    15: "The next state of a step is the state of the step after it",
    16: "Terminated by containment or an own end, else truncated",
    17: "Containing earlier never costs, interrupting never pays",
    18: "Hindsight rewards are those of stepping the environment",
    19: "A partial episode is kept, marked, never a terminal",
    20: "A two-stage trajectory joins both sandboxes' steps",
    21: "The replay never exceeds its capacity",
    22: "The replay evicts first in, first out",
    23: "Sampling is uniform over stored rows",
    24: "Concurrent add and sample never tear a row",
    25: "Save and load restore the replay exactly",
    26: "Targets come from frozen weights, updated when stated",
    27: "The clipped gradient norm is within its bound",
    28: "Epsilon falls exponentially from 1.0 to 0.1",
    29: "One seed gives one set of weights",
    30: "A resumed training continues bit for bit",
    31: "Incremental training reads only new experiences and its replay",
    32: "On an enumerable generator the policy comes near the optimum",
    33: "The exported graph passes the checker and reloads",
    34: "PyTorch and ONNX Runtime agree at every batch size",
    35: "A changed, foreign or unsigned bundle is refused",
    36: "The metadata is complete and agrees with the graph",
    37: "A reader sees the old release or the new one, never half",
    38: "A decision takes < 10 ms at p99 under the stated load",
    39: "A hot reload drops no request; Q-values match their version",
    40: "Every decided action is dispatched once in effect",
    41: "Retries back off with jitter inside a bound",
    42: "The dispatch rate limit is never exceeded",
    43: "Every learned pattern is stored or queued, none lost",
    44: "Without the right credential nobody reads or acts",
}

OPEN = {
    20: "no second sandbox stage is joined yet",
    40: "nothing is dispatched yet: the service decides and records",
    41: "nothing is dispatched yet",
    42: "nothing is dispatched yet",
}

PARTIAL = {
    1: "without the 100 ms at p99, which is a benchmark's",
    38: "that it waits for nothing; the milliseconds are a benchmark's",
}


class Collector:
    """A pytest plugin: which tests carry which numbers, and how they ended."""

    def __init__(self) -> None:
        self.tests: dict[int, list[str]] = defaultdict(list)
        self.results: dict[str, str] = {}

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the marked tests alone."""
        marked = []
        for item in items:
            numbers = [mark.args[0] for mark in item.iter_markers("property")]
            for number in numbers:
                self.tests[number].append(item.nodeid)
            if numbers:
                marked.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of setup, call and teardown."""
        if report.failed or report.skipped:
            self.results[report.nodeid] = report.outcome
        else:
            self.results.setdefault(report.nodeid, report.outcome)


def collect(*, run: bool) -> Collector:
    """Collect the marked tests, and run them if wanted."""
    collector = Collector()
    options = ["-q"] if run else ["-qq", "--collect-only"]
    status = pytest.main([*options, "tests"], plugins=[collector])
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED):
        raise RuntimeError(f"pytest could not collect the tests: {status!r}")
    return collector


def result_of(tests: list[str], results: Mapping[str, str]) -> str:
    """One word for a property: the worst of its tests."""
    outcomes = {results.get(test, "not run") for test in tests}
    return next((w for w in ("failed", "not run", "passed") if w in outcomes), "skipped")


def rows(collector: Collector) -> list[tuple[int, str, str, list[str]]]:
    """Number, sentence, result, test functions (each once, whatever its parameters)."""
    table = []
    for number, sentence in SENTENCES.items():
        tests = collector.tests.get(number, [])
        if tests:
            result = result_of(tests, collector.results)
        else:
            result = "open" if number in OPEN else "NO TEST"
        if limit := PARTIAL.get(number) or OPEN.get(number):
            sentence += f" ({limit})"
        functions = list(dict.fromkeys(test.split("[")[0] for test in tests))
        table.append((number, sentence, result, functions))
    return table


def main() -> int:
    """Run the marked tests and print the table; 1 where something that is due does not hold."""
    table = rows(collect(run=True))
    print("\nThe 44 correctness properties\n")
    for number, sentence, result, tests in table:
        print(f"{number:>3}  {result:<8} {sentence}")
        for test in tests:
            print(f"       {test}")
    holds = sum(result == "passed" for _, _, result, _ in table)
    opened = sum(result == "open" for _, _, result, _ in table)
    print(f"\n{holds} hold, {opened} are open, {len(table) - holds - opened} do not hold")
    return int(any(r in ("failed", "not run", "NO TEST") for _, _, r, _ in table))


if __name__ == "__main__":
    sys.exit(main())
