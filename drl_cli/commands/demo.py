"""`drl demo`: end-to-end demonstration, from a file of telemetry to one decision over HTTP.

It takes the same path as production: the processes of `drl up` run, telemetry lands, and the
sensors do the rest. This module waits, prints the progress, and calls the service.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from drl_cli.local import up
from drl_cli.output import err, out, progress_bar
from drl_core.release.manifest import Manifest
from drl_core.settings import Settings
from drl_core.telemetry.event import Event, encode_event
from drl_core.telemetry.landing import LandingZone

if TYPE_CHECKING:
    import dagster as dg

RELEASE_WAIT_S = 900.0
SAMPLE = Path("samples/recorded/telemetry.jsonl.gz")


class DemoError(RuntimeError):
    """The demonstration failed; the message says where to look."""


def run(settings: Settings, path: Path | None, *, once: bool) -> int:
    """Run the demonstration.

    Args:
        settings: the configuration.
        path: telemetry; the recorded sample by default.
        once: stop everything after the first decision.

    Returns:
        The exit status.
    """
    path = path or up.project_root() / SAMPLE
    if not path.exists():
        raise DemoError(f"telemetry: {path} does not exist")
    began = time.monotonic()
    try:
        with up.stop_on_signals(), up.only_one(settings):
            up.check_ports(settings)
            with up.database(settings) as url:
                _log(began, "database ready")
                env = up.environment(settings, url)
                with up.processes(settings, env) as running:
                    _log(began, "daemon, UI and service ready")
                    _import(settings, path)
                    _log(began, "telemetry landed; the sensors continue")
                    manifest = _wait_for_release(settings, running, env, began)
                    _log(began, f"model {manifest.model_version} released")
                    _decide(settings, path, manifest)
                    _log(began, "first decision")
                    if once:
                        return 0
                    _what_next(settings)
                    return running.wait()
    except up.Stopped as stopped:
        return 128 + stopped.signum


def _log(began: float, text: str) -> None:
    err.print(f"[bold cyan]{time.monotonic() - began:6.1f} s[/]  {text}", highlight=False)


def _import(settings: Settings, path: Path) -> None:
    from drl_assets.sources.importer import import_telemetry

    with progress_bar("importing") as update:
        result = import_telemetry([path], LandingZone(settings.landing_path), progress=update)
    out.print(
        f"{path.name}: {result.events:,} events, {result.episodes:,} episodes, "
        f"{result.dead_letters} dead letters, {len(result.no_evidence)} without behaviour"
    )
    for name in result.no_evidence:
        out.print(f"  no evidence: {Path(name).name}", highlight=False)
    if not result.events:
        raise DemoError(f"{path} holds no telemetry: see {settings.landing_path / 'dead_letters'}")


def _wait_for_release(
    settings: Settings, running: up.RunningProcesses, env: Mapping[str, str], began: float
) -> Manifest:
    """Print the progress of the daemon's runs until nothing is left to ingest or to learn."""
    import dagster as dg

    from drl_assets.defs.resources import Project
    from drl_assets.defs.training.sensors import demand

    os.environ.update(env)  # the instance is configured by the same variables as the daemon's
    project = Project()
    landing = LandingZone(settings.landing_path)
    deadline = time.monotonic() + RELEASE_WAIT_S
    printed: set[tuple[str, str]] = set()
    with dg.DagsterInstance.get() as instance:
        while True:
            for run in reversed(instance.get_runs(limit=20)):
                _print_run(run, instance, printed, began)
            champion = project.champion
            ingested = set(landing.keys()) <= project.tables.done("experiences")
            if ingested and not landing.waiting() and not _unfinished(instance):
                rows, _, needed = demand(project, champion)
                if champion and rows < needed:
                    return champion
                if not champion and not rows:
                    raise DemoError(
                        "no episode for training has a label, so nothing can be learned: set "
                        "is_malicious in the telemetry, or import with --label"
                    )
            if running.ended is not None:
                raise DemoError("a process ended before a model was released: see the log above")
            if time.monotonic() > deadline:
                raise DemoError(
                    f"no model was released in {RELEASE_WAIT_S:g} s: see the runs at "
                    f"http://127.0.0.1:{settings.ui_port}/runs"
                )
            time.sleep(0.5)


def _unfinished(instance: "dg.DagsterInstance") -> bool:
    import dagster as dg

    waiting = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    ]
    return bool(instance.get_run_ids(dg.RunsFilter(statuses=waiting), limit=1))


def _print_run(
    run: "dg.DagsterRun",
    instance: "dg.DagsterInstance",
    printed: set[tuple[str, str]],
    began: float,
) -> None:
    """Print each step of a run once, when it has ended.

    Raises:
        DemoError: the run failed.
    """
    for step in instance.get_run_step_stats(run.run_id):
        if not (step.start_time and step.end_time and step.status):
            continue
        if (run.run_id, step.step_key) in printed:
            continue
        printed.add((run.run_id, step.step_key))
        took = step.end_time - step.start_time
        _log(began, f"{run.job_name}: {step.step_key} {step.status.value.lower()} in {took:.1f} s")
    if run.is_failure and (run.run_id, "run") not in printed:
        printed.add((run.run_id, "run"))
        raise DemoError(f"{run.job_name} failed (run {run.run_id}): the reason is in the log above")


def _decide(settings: Settings, path: Path, manifest: Manifest) -> None:
    """Send one episode, window by window, until the policy acts; print that decision."""
    events = _one_episode(path)
    base = f"http://{settings.serving.host}:{settings.serving.port}"
    _until(lambda: _get(f"{base}/v1/models/current")["model_version"] == manifest.model_version)
    for event in events:
        answer = _post(f"{base}/v1/decisions", encode_event(event))
        if answer["action"] != 0:
            break
    out.print("\n[bold]a decision[/] (POST /v1/decisions):")
    out.print_json(json.dumps(answer))


def _one_episode(path: Path) -> list[Event]:
    """The first malicious episode, else the first one, under an id of its own."""
    from drl_assets.sources.importer import read_events

    chosen: dict[tuple[str, str], list[Event]] = {}
    for event in read_events([path]):
        chosen.setdefault(event.key[:2], []).append(event)
    episode = next((e for e in chosen.values() if e[0].is_malicious), next(iter(chosen.values())))
    unique = f"demo-{time.time_ns()}"
    ordered = sorted(episode, key=lambda event: event.step)
    return [
        msgspec.structs.replace(
            event, episode_id=unique, step=step, is_malicious=None, severity=None, attack_type=None
        )
        for step, event in enumerate(ordered)
    ]


def _what_next(settings: Settings) -> None:
    base = f"http://{settings.serving.host}:{settings.serving.port}"
    out.print(
        f"\nthe graph    http://127.0.0.1:{settings.ui_port}/asset-groups\n"
        f"the API      {base}/schema\n"
        f"the model    {base}/v1/models/current\n"
        f"patterns     {base}/v1/patterns\n"
        f"metrics      {base}/metrics\n"
        "\ntry next, in another terminal:\n"
        "  [bold].venv/bin/drl record -o mine.jsonl -- ls -lR /usr/share[/]   "
        "record a program of yours\n"
        "  [bold].venv/bin/drl import mine.jsonl[/]                           "
        "and watch the batch, and perhaps a new model, appear\n"
        "Ctrl-C stops everything.",
        highlight=False,
    )


def _until(condition: Callable[[], bool], wait_s: float = 30.0) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError("the service does not serve the released model: see its log above")
        time.sleep(0.05)


def _get(url: str) -> dict[str, Any]:
    return _answer(urllib.request.Request(url))  # noqa: S310


def _post(url: str, body: bytes) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    return _answer(urllib.request.Request(url, body, headers))  # noqa: S310


def _answer(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            content: dict[str, Any] = json.loads(response.read())
    except urllib.error.HTTPError as error:
        content = json.loads(error.read())
        if error.code != 503:
            raise DemoError(f"{request.full_url}: {content.get('detail')}") from None
        return {"model_version": None}
    return content
