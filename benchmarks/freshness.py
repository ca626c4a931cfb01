"""`python -m benchmarks.freshness [--steps N]`: how soon telemetry is a new model that decides.

`drl up` runs as it does for anyone, on a home folder and free ports of its own. Two of three
sessions of the recorded sample (of generated telemetry, where there is none) are imported and
taught; then, with everything warm, the third ones: an update, which goes on from the champion.
Printed are the seconds of each stage of the second release, from the segment's landing to the
service's first decision by the new model. The stages' times are those that the parts leave behind:
names, manifests and modification times.

The integration test runs the same functions on less.
"""

import argparse
import datetime as dt
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from drl_assets.sources.importer import read_events
from drl_assets.sources.synthetic import generate_events
from drl_core import settings
from drl_core.files import write_atomically
from drl_core.release.manifest import Manifest
from drl_core.release.signing_keys import trusted_keys
from drl_core.release.store import ModelStore
from drl_core.settings import Settings
from drl_core.telemetry.event import Event, encode_event
from drl_core.telemetry.landing import LandingZone

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE = REPOSITORY / "samples/recorded/telemetry.jsonl.gz"
PATIENCE_S = 600.0
"""How long anything is waited for; a bound for what hangs, not a goal."""

T = TypeVar("T")


class Stalled(RuntimeError):  # noqa: N818 - it says what is the case
    """What was waited for did not come, or `drl up` ended; with the end of its log."""


@dataclass
class Site:
    """A running `drl up`."""

    settings: Settings
    environ: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def service(self) -> str:
        return f"http://{self.settings.serving.host}:{self.settings.serving.port}"

    def until(self, condition: Callable[[], T | None], what: str) -> T:
        """Poll until a condition gives something.

        Raises:
            Stalled: it did not within PATIENCE_S, or `drl up` ended.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if (found := condition()) is not None:
                return found
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Stalled(f"waited for {what}:\n{self.log.read_text()[-5000:]}")
            time.sleep(0.02)

    def import_(self, path: Path) -> dict[str, Any]:
        """`drl import` in a process of its own; gives what it prints."""
        done = subprocess.run(
            [drl(), "import", str(path), "--json"],
            env=self.environ,
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def release(self, after: int = 0) -> Manifest:
        """The first release with a higher sequence number, waited for."""
        store = ModelStore(self.settings.models_path)

        def newer() -> Manifest | None:
            if not store.current_path.exists():
                return None
            manifest = store.load(trusted_keys(self.settings.keys_path)).manifest
            return manifest if manifest.sequence > after else None

        return self.until(newer, f"a release after number {after}")

    def decision_by(self, version: str, event: Event) -> tuple[float, dict[str, Any]]:
        """Ask the service until this model answers; gives the time (epoch) and the decision.

        Every question is an episode of its own: a redelivered window keeps its first decision.
        """

        def answer() -> tuple[float, dict[str, Any]] | None:
            unasked = msgspec.structs.replace(event, episode_id=f"freshness-{time.time_ns()}")
            decision = post(f"{self.service}/v1/decisions", encode_event(unasked))
            named = decision is not None and decision["model_version"] == version
            return (time.time(), decision) if decision is not None and named else None

        return self.until(answer, f"a decision by {version}")


def drl() -> str:
    """The console script beside this interpreter."""
    return str(Path(sys.executable).with_name("drl"))


def post(url: str, body: bytes) -> dict[str, Any] | None:
    """The JSON answer, None where the service is not there or has no model yet (503)."""
    request = urllib.request.Request(  # noqa: S310 - on loopback
        url, data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            found: dict[str, Any] = json.load(response)
            return found
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return None
    except urllib.error.URLError:
        return None


@contextmanager
def site(home: Path, **variables: str) -> Iterator[Site]:
    """`drl up` on a home folder, ready, and ended by Ctrl-C's signal afterwards."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("DRL_", "DAGSTER_"))}
    ui, service = free_ports(2)
    environ = {
        **plain,
        "DRL_HOME": str(home),
        "DRL_UI_PORT": str(ui),
        "DRL_SERVING__PORT": str(service),
        **variables,
    }
    log = home.with_name(f"{home.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [drl(), "up"],
            env=environ,
            cwd=REPOSITORY,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Site(settings.load(REPOSITORY / "config", environ), environ, process, log)
    try:
        running.until(lambda: "ready" in log.read_text() or None, "drl up to be ready")
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def left_running(home: Path) -> list[str]:
    """Living processes that were given a home folder in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(
                "DRL_HOME"
            ) == str(home):
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def stages(running: Site, manifest: Manifest, decided: float) -> dict[str, float]:
    """Seconds of each stage of a release, of the last batch that it learned from.

    Args:
        running: where it happened.
        manifest: the release.
        decided: epoch time of the first decision by it.
    """
    configured, key = running.settings, manifest.batch_partitions[-1]
    batch = LandingZone(configured.landing_path).batch(key)
    landed = max(int(segment.name.split("-", 1)[0]) for segment in batch.segments) / 1e9
    version = manifest.model_version
    times = {
        "landing": landed,
        "batch": dt.datetime.fromisoformat(batch.sealed_at).timestamp(),
        "experiences": modified(configured.tables_path / "experiences" / f"{key}.parquet"),
        "checkpoint": modified(configured.checkpoints_path / f"{version}.pt"),
        "release": modified(configured.models_path / "releases" / f"{manifest.sequence:08d}.json"),
        "first decision": decided,
    }
    names = list(times)
    return {
        f"{before} -> {after}": times[after] - times[before]
        for before, after in itertools.pairwise(names)
    }


def modified(path: Path) -> float:
    """Epoch seconds of a file's last change."""
    return path.stat().st_mtime


def write(path: Path, events: Sequence[Event]) -> Path:
    """Events as JSON lines."""
    write_atomically(path, b"".join(encode_event(event) + b"\n" for event in events))
    return path


def two_parts() -> tuple[list[Event], list[Event]]:
    """Telemetry in two parts of no common session."""
    events = read_events([SAMPLE]) if SAMPLE.exists() else tuple(generate_events(200, 20))
    sessions = sorted({event.session_id or "" for event in events})
    first = set(sessions) - set(sessions[::3])
    return (
        [event for event in events if (event.session_id or "") in first],
        [event for event in events if (event.session_id or "") not in first],
    )


def main() -> None:
    """Two releases; print the stages of the second."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freshness")
    parser.add_argument("--steps", type=int, default=5_000, help="gradient steps of the update")
    options = parser.parse_args()
    first, second = two_parts()
    with tempfile.TemporaryDirectory() as folder:
        files = [write(Path(folder, f"{n}.jsonl"), part) for n, part in enumerate((first, second))]
        home = Path(folder, "home")
        given = {
            "DRL_LEARNING__INCREMENTAL_STEPS": str(options.steps),
            # so few held-out sessions seldom show that a challenger is no worse; here the gates
            # judge as ever, but what counts is their time
            "DRL_GATES__DELTA": "100",
            "DRL_GATES__DELTA_PER_TYPE": "100",
            "DRL_GATES__INTERRUPTION_BUDGET": "1",
            "DRL_GATES__REVIEW_CAP": "1",
        }
        with site(home, **given) as running:
            running.import_(files[0])
            known = running.release()
            running.decision_by(known.model_version, first[0])
            print(f"{known.model_version}: from {len(first):,} events; everything is warm")
            running.import_(files[1])
            manifest = running.release(after=known.sequence)
            decided, _ = running.decision_by(manifest.model_version, second[0])
            print(
                f"{manifest.model_version}: {len(second):,} new events, "
                f"{manifest.gradient_steps:,} gradient steps"
            )
            report(stages(running, manifest, decided))


def report(seconds: dict[str, float]) -> None:
    """Print the stages and their sum."""
    for stage, taken in seconds.items():
        print(f"  {stage:<28}{taken:>8.2f} s")
    print(f"  {'landing -> first decision':<28}{sum(seconds.values()):>8.2f} s")


if __name__ == "__main__":
    main()
