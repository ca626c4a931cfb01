"""`python -m benchmarks.serving --peers PYTHON`: our service beside others, in one run.

PYTHON is the interpreter of an environment that has the peers, which pin what they need:

    python3.11 -m venv /tmp/peers
    /tmp/peers/bin/pip install -r benchmarks/serving/peers/requirements.txt

All servers serve the same graph with one worker on one processor core, the load generator has the
other. Rounds go over all of them in turn. Then come Poisson arrivals against two workers, beside a
server that only echoes, and five times the load that one worker can take. Without `--peers` our
service is measured alone. `--only` picks one of the three parts.
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.serving import closed, opened, payloads, report, servers
from benchmarks.serving.processes import ROOT, Client

PARTS = ("closed", "poisson", "overload")
STARTS = 2
"""Starts beside the one that is measured."""
BATCH_ROUNDS = 5
TIGHT_IN_FLIGHT = 32
"""`serving.max_in_flight` where short answers are worth more than many at once."""


def machine() -> dict[str, Any]:
    """Where and when."""
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "machine": f"{os.cpu_count()} cores of {model}, {platform.system()} {platform.release()}",
        "commit": head.stdout.strip(),
        "begun": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "load average at begin": " ".join(f"{one:.1f}" for one in os.getloadavg()),
    }


def versions(python: str) -> str:
    """The peers' versions."""
    names = ("mlserver", "bentoml", "litserve", "fastapi", "uvicorn", "onnxruntime")
    code = f"from importlib.metadata import version as v; print({{n: v(n) for n in {names}}})"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def side_by_side(
    home: servers.Home, url: str, database: int, peers: str | None, chosen: argparse.Namespace
) -> dict[str, Any]:
    """Closed loop."""
    folder = home.path.parent
    rows: dict[str, closed.Row] = {}
    other = servers.twin(home, folder / "twin")
    many = [servers.ours(home, url), servers.ours(other, url, log_share=1.0)]
    many += servers.peers(peers, home) if peers else []
    client = Client(closed.CLIENT_CORES)
    closed.start_times(many, 1, folder, client, {})  # compiles what each imports
    closed.start_times(many, STARTS, folder, client, rows)
    with closed.all_started(many, folder, rows) as targets:
        ours, mlserver = targets[0], next((t for t in targets if t.name == "MLServer"), None)
        v2 = replace(ours, name="drl, V2", wire=payloads.as_tensors(closed.INFER, home.headers))
        everyone = [ours, v2, *targets[1:]]
        closed.rounds(everyone, chosen.rounds, chosen.seconds, client, database, rows)
        batches = closed.batches(home, ours, mlserver, BATCH_ROUNDS)
    client.close()
    return {"rows": rows, "batches": batches}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """All that was chosen."""
    figures: dict[str, Any] = {"machine": machine()}
    parts = chosen.only or PARTS
    if chosen.peers:
        figures["machine"]["peers"] = versions(chosen.peers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        home = servers.release(folder / "home")
        with servers.database(home.path) as (url, database):
            if "closed" in parts:
                figures |= side_by_side(home, url, database, chosen.peers, chosen)
            if "poisson" in parts:
                two = servers.ours(servers.twin(home, folder / "two"), url, workers=2)
                pair = [two, servers.echo(2)]
                figures["poisson"] = opened.poisson(pair, chosen.poisson_seconds, folder)
            if "overload" in parts:
                other = servers.twin(home, folder / "one")
                figures["overload"] = {
                    limit: opened.overload(servers.ours(other, url, max_in_flight=limit), folder)
                    for limit in (servers.MAX_IN_FLIGHT, TIGHT_IN_FLIGHT)
                }
    figures["machine"]["load average at end"] = " ".join(f"{one:.1f}" for one in os.getloadavg())
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--poisson-seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    chosen = parser.parse_args()
    figures = measure(chosen)
    print(report.text(figures))
    if chosen.json:
        chosen.json.write_text(json.dumps(report.plain(figures), indent=1, default=str))


if __name__ == "__main__":
    main()
