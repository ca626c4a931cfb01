"""Records the sample: runs every script of ordinary/ and emulations/ under strace.

Each script says at its top, behind `variants:`, with which arguments it runs (`A B | C D` are two
runs), and what programs it `needs:`; emulations also say their `attack_type:` and `severity:`.
Every run gets a temporary folder as working directory and HOME, an environment that names nothing
of this machine, and the port of a loopback peer in PEER. All runs of one script are one session:
evaluation never splits them between training and test. One file comes out, in an order drawn by the
seed; with `--only` the other sessions of an existing file stay as they are.

    python samples/record.py [--out samples/recorded/telemetry.jsonl.gz] [--only NAME ...]
"""

import argparse
import gzip
import hashlib
import http.server
import os
import random
import re
import shutil
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.progress import Progress

from drl_assets.sources.strace.recorder import Label, RecordResult, record, write_events
from drl_core.telemetry.event import Event, Stage, parse_lines

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 30.0
_MAX_GET_BYTES = 10_000_000


@dataclass(frozen=True)
class Run:
    """One script with one set of arguments."""

    script: Path
    arguments: tuple[str, ...]
    number: int
    label: Label
    stage: Stage

    @property
    def episode_id(self) -> str:
        return f"{self.script.stem}-{self.number}"

    @property
    def artifact_sha256(self) -> str:
        content = self.script.read_bytes() + "\0".join(("", *self.arguments)).encode()
        return hashlib.sha256(content).hexdigest()


class Peer(http.server.BaseHTTPRequestHandler):
    """The other end on loopback: GET /N gives N bytes, POST takes what comes."""

    def do_GET(self) -> None:
        wanted = self.path.strip("/")
        size = min(int(wanted) if wanted.isdigit() else 0, _MAX_GET_BYTES)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(random.randbytes(size))

    def do_POST(self) -> None:
        left = int(self.headers.get("Content-Length", 0))
        while left > 0 and (block := self.rfile.read(min(left, 1 << 16))):
            left -= len(block)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the progress bar owns the terminal."""


def runs(draw: random.Random) -> list[Run]:
    """All runs that this machine has the programs for, in an order drawn at random."""
    found = []
    for script in sorted([*HERE.glob("ordinary/*"), *HERE.glob("emulations/*")]):
        head = script.read_text()[:1500]
        lacking = [name for name in _said(head, "needs").split() if shutil.which(name) is None]
        if lacking:
            print(f"left out {script.stem}: needs {', '.join(lacking)}", file=sys.stderr)
            continue
        emulation = script.parent.name == "emulations"
        label = Label(
            is_malicious=emulation,
            severity=float(_said(head, "severity")) if emulation else None,
            attack_type=_said(head, "attack_type") if emulation else None,
        )
        for number, variant in enumerate(_said(head, "variants").split("|")):
            # no detector judged these programs, so a coin decides which stage a run stands for
            stage = draw.choice((Stage.POSITIVE, Stage.NEGATIVE))
            found.append(Run(script, tuple(variant.split()), number, label, stage))
    draw.shuffle(found)
    return found


def record_run(run: Run, out: Path, peer: int) -> RecordResult:
    """Record one run into `out`, in a folder that is deleted afterwards."""
    interpreter = shutil.which("bash") if run.script.suffix == ".sh" else sys.executable
    python = Path(sys.executable).resolve().parent
    with tempfile.TemporaryDirectory(prefix="sample-") as folder:
        home = Path(folder)
        script = str(shutil.copy(run.script, home))
        return record(
            [str(interpreter), script, *run.arguments],
            out,
            sandbox_id="sample",
            stage=run.stage,
            label=run.label,
            episode_id=run.episode_id,
            session_id=run.script.stem,
            artifact_sha256=run.artifact_sha256,
            timeout_s=TIMEOUT_S,
            cwd=home,
            env={
                "HOME": folder,
                "PATH": f"{python}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                "LANG": "C.UTF-8",
                "PEER": str(peer),
            },
            quiet=True,
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=HERE / "recorded" / "telemetry.jsonl.gz")
    options.add_argument("--only", nargs="*", help="names of scripts")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    given = options.parse_args()
    wanted = [
        run
        for run in runs(random.Random(given.seed))
        if not given.only or run.script.stem in given.only
    ]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        parts = [Path(folder) / f"{number}.jsonl" for number in range(len(wanted))]
        tasks = [
            pool.submit(record_run, run, part, server.server_port)
            for run, part in zip(wanted, parts, strict=True)
        ]
        with Progress() as progress:
            bar = progress.add_task("recording", total=len(tasks))
            for task, part in zip(tasks, parts, strict=True):
                result = task.result()
                progress.console.print(
                    f"{result.episode_id}: {result.events} windows, {result.seconds:.1f} s,"
                    f" status {result.exit_status}, {len(result.refused)} lines refused"
                    + ("" if result.ended else ", TIME LIMIT")
                )
                progress.advance(bar)
                events += parse_lines(part.read_bytes())[0]
    server.shutdown()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    anew = {run.script.stem for run in wanted}
    kept = [event for event in _existing(given.out) if given.only and event.session_id not in anew]
    write_events(given.out, kept + [scrub(event) for event in events])
    print(f"{len(events)} events of {len(wanted)} episodes, {len(kept)} kept -> {given.out}")


def _existing(path: Path) -> list[Event]:
    return parse_lines(gzip.decompress(path.read_bytes()))[0] if path.exists() else []


def scrub(event: Event) -> Event:
    """Without the process: it would name the interpreter of this machine."""
    return msgspec.structs.replace(event, process=None)


def _said(head: str, key: str) -> str:
    found = re.search(rf"^(?:# )?{key}: (.*)$", head, re.MULTILINE)
    return found[1].strip() if found else ""


if __name__ == "__main__":
    main()
