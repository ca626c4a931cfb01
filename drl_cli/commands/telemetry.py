"""`drl import`, `drl generate`, `drl record`: commands that bring telemetry in."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from drl_cli.configuration import current_settings
from drl_cli.output import Json, err, out, print_json, progress_bar
from drl_core.telemetry.event import Stage


class Truth(StrEnum):
    """A label given on the command line."""

    MALICIOUS = "malicious"
    BENIGN = "benign"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="import")(import_)
    app.command()(generate)
    app.command(context_settings={"ignore_unknown_options": True})(record)


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders; .gz is fine.")],
    format: Annotated[
        str,
        typer.Option(help="auto, json (flat JSON), cape, cuckoo, perf-csv or strace."),
    ] = "auto",
    sandbox_id: Annotated[
        str | None, typer.Option(help="Set in every event (default: what the file says).")
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="positive: a detector flagged the file; negative: it passed."),
    ] = None,
    label: Annotated[
        Truth | None,
        typer.Option(help="malicious or benign: ground truth, where the files have none."),
    ] = None,
    json: Json = False,
) -> None:
    """Import telemetry into the landing zone; with `drl up` running, training follows by itself.

    Invalid records go to the dead-letter file with the reason. A report without behaviour gives no
    episode and is listed: it is no evidence of anything.
    """
    from drl_assets.sources.importer import import_telemetry
    from drl_core.telemetry.landing import LandingZone

    zone = LandingZone(current_settings().landing_path)
    with progress_bar("importing", quiet=json) as update:
        result = import_telemetry(
            paths,
            zone,
            format=format,
            sandbox_id=sandbox_id,
            stage=stage,
            label=None if label is None else label.value,
            progress=update,
        )
    if json:
        print_json(result)
        return
    out.print(
        f"{result.events:,} events of {result.episodes:,} episodes from {result.files} files landed"
        f" in {zone.root}; {result.dead_letters} dead letters, "
        f"{len(result.no_evidence)} without behaviour"
    )
    for name in result.no_evidence:
        err.print(f"  no evidence: {name}", highlight=False)
    if result.dead_letters:
        out.print(f"  reasons: {zone.root / 'dead_letters'}")
    out.print("next: with [bold]drl up[/] running, watch the batch appear in the Dagster UI")


def generate(
    output: Annotated[Path, typer.Argument(help="FILE.json (array) or FILE.jsonl (lines).")],
    episodes: Annotated[int, typer.Option(min=1)] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Windows per episode.")] = 50,
    seed: int = 0,
    malicious_share: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    json: Json = False,
) -> None:
    """Write synthetic telemetry as flat JSON, for tests; not for evaluating a policy."""
    from drl_assets.sources.synthetic import create_sample_telemetry_file

    events = create_sample_telemetry_file(
        output, episodes, steps, seed=seed, malicious_share=malicious_share
    )
    if json:
        print_json({"path": str(output), "events": events, "episodes": episodes, "seed": seed})
    else:
        out.print(f"{events:,} events of {episodes} episodes in {output}")
        out.print(f"next: [bold]drl import {output}[/]")


def record(
    command: Annotated[list[str], typer.Argument(help="-- PROGRAM ARGUMENTS…")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="FILE.jsonl or FILE.jsonl.gz.")
    ] = Path("recorded.jsonl"),
    window: Annotated[float, typer.Option(help="Length of a window in seconds, 0.25 to 1.")] = 0.5,
    timeout: Annotated[
        float | None, typer.Option(help="Kill the process tree after this many seconds.")
    ] = None,
    sandbox_id: str = "recorder",
    stage: Stage = Stage.POSITIVE,
    label: Annotated[
        Truth | None, typer.Option(help="Ground truth, where known: malicious or benign.")
    ] = None,
    severity: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    attack_type: str | None = None,
    json: Json = False,
) -> None:
    """Run a program under strace and write its telemetry as one episode. It is not isolated."""
    from drl_assets.sources.strace import recorder

    result = recorder.record(
        command,
        output,
        window_s=window,
        sandbox_id=sandbox_id,
        stage=stage,
        label=None
        if label is None
        else recorder.Label(
            is_malicious=label is Truth.MALICIOUS, severity=severity, attack_type=attack_type
        ),
        timeout_s=timeout,
        quiet=json,
    )
    if json:
        print_json(
            {
                "path": str(result.path),
                "episode_id": result.episode_id,
                "events": result.events,
                "seconds": result.seconds,
                "ended": result.ended,
                "exit_status": result.exit_status,
                "refused": [letter.reason for letter in result.refused],
            }
        )
    else:
        out.print(
            f"{result.events} windows in {result.seconds:.1f} s, exit status {result.exit_status}"
            f"{'' if result.ended else ' (time limit)'}: {result.path}"
        )
        out.print(f"next: [bold]drl import {result.path}[/]")
