"""`drl train` and `drl evaluate`: training and evaluation without Dagster or a database."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drl_cli.commands.releases import load_release
from drl_cli.configuration import current_settings
from drl_cli.output import Json, err, out, print_json, progress_bar

if TYPE_CHECKING:
    import polars as pl

    from drl_core.policy.reward import CostTable
    from drl_core.release.store import Release

Telemetry = Annotated[
    list[Path], typer.Option("--telemetry", help="File or folder of telemetry; may be repeated.")
]
More = Annotated[list[Path] | None, typer.Argument(help="Further files or folders of telemetry.")]
HoldOut = Annotated[
    float,
    typer.Option(
        min=0,
        max=0.9,
        help="Share of sessions held out for evaluation, the same ones in train and evaluate.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(train)
    app.command()(evaluate)


def train(
    telemetry: Telemetry,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the signed release.")],
    more: More = None,
    preset: Annotated[
        str,
        typer.Option(
            help="The algorithm: default (full-information fitted Q), report (the report's DQN), "
            "or another registered one."
        ),
    ] = "default",
    seed: int = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Gradient steps (default) or episodes (report).")
    ] = None,
    hold_out: HoldOut = 0.0,
    json: Json = False,
) -> None:
    """Train a policy from files; write a signed release for `drl evaluate` and the service."""
    from drl_assets.learning import trainer
    from drl_assets.learning.export import release
    from drl_assets.learning.learners import registry
    from drl_assets.reporting.provenance import git_commit
    from drl_core.release import signing_keys

    configured = current_settings()
    learning = msgspec.structs.replace(configured.learning, preset=preset, seed=seed)
    try:
        algorithm = registry.algorithm(preset)
    except registry.UnknownAlgorithmError as cause:
        raise typer.BadParameter(f"--preset {preset}: {cause}") from None
    if steps is not None:
        learning = msgspec.structs.replace(learning, **{algorithm.steps_setting: steps})
    frame = _experiences([*telemetry, *(more or [])], configured.costs, hold_out, quiet=json)
    with progress_bar("training", quiet=json) as update:
        checkpoint = trainer.train(
            frame.filter(~frame["held_out"]), learning, costs=configured.costs, progress=update
        )
    key = signing_keys.signing_key(configured.keys_path)
    signing_keys.trust(out_folder / "keys", key.public_key())
    manifest = release.publish(checkpoint, out_folder, key, evaluation={}, commit=git_commit())
    summary = {
        "bundle": str(out_folder),
        "model_version": manifest.model_version,
        "sequence": manifest.sequence,
        "preset": manifest.preset,
        "seed": manifest.seed,
        "training_episodes": manifest.training_episodes,
        "gradient_steps": manifest.gradient_steps,
        "final_average_reward": manifest.final_average_reward,
        "final_loss": manifest.final_loss,
    }
    chosen = checkpoint.hyperparameters
    summary |= {name: chosen.get(name) for name in algorithm.summary}
    if json:
        print_json(summary)
        return
    out.print(
        f"model {manifest.model_version}: {manifest.training_episodes} episodes, "
        f"{manifest.gradient_steps} gradient steps, mean return {manifest.final_average_reward:.3f}"
    )
    out.print(algorithm.explain(chosen))
    shown = f" --hold-out {hold_out}" if hold_out else ""
    out.print(f"next: [bold]drl evaluate --bundle {out_folder} --telemetry PATH{shown}[/]")


def evaluate(
    telemetry: Telemetry,
    bundle: Annotated[Path, typer.Option(help="Folder of a release (`drl train --out`).")],
    more: More = None,
    hold_out: HoldOut = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random policy and of the bootstrap.")] = 0,
    report_folder: Annotated[
        Path | None,
        typer.Option("--report", help="Folder for a Markdown report with figures."),
    ] = None,
    json: Json = False,
) -> None:
    """Evaluate a release and the baselines on labelled recordings, by replay; nothing is trained.

    With --hold-out, only the sessions that `drl train --hold-out` held out are replayed.
    """
    from drl_assets.learning.data.episodes import from_experiences
    from drl_assets.learning.evaluation import evaluate as evaluation
    from drl_assets.learning.evaluation import off_policy, policies
    from drl_assets.learning.export import onnx_export
    from drl_assets.reporting import markdown
    from drl_assets.reporting.provenance import git_commit

    costs = current_settings().costs
    release = load_release(bundle)
    frame = _experiences([*telemetry, *(more or [])], costs, hold_out, quiet=json)
    if hold_out:
        frame = _held_out(frame, hold_out)
    episodes = from_experiences(frame)
    if not len(episodes):
        raise ValueError(
            f"telemetry: no labelled episode to evaluate ({episodes.unlabelled} unlabelled): set "
            "is_malicious in the telemetry, or import with --label"
        )
    q_values = policies.onnx_q(onnx_export.session(release.model))
    tuned, missing = _tuned_baselines(bundle, release)
    result = evaluation.evaluate_policies(
        policies.greedy(q_values), episodes, tuned, costs, seed, q_values
    )
    result["notes"] += missing
    result["off_policy"] = off_policy.estimate(frame, q_values, costs, seed)
    about = {
        "model_version": release.manifest.model_version,
        "command": shlex.join(["drl", *sys.argv[1:]]),
        "seed": seed,
        "hold_out": hold_out,
        "preset": release.manifest.preset,
        "trained_with_seed": release.manifest.seed,
        "costs_version": costs.version,
        "commit_of_training": release.manifest.git_commit,
        "commit_of_evaluation": git_commit(),
    }
    if report_folder is not None:
        written = markdown.write(report_folder, result, q_values, episodes, about)
    if json:
        print_json({**about, **result})
        return
    _print_table(release.manifest.model_version, result)
    if report_folder is not None:
        out.print(f"report: [bold]{written}[/]")


def _held_out(frame: "pl.DataFrame", hold_out: float) -> "pl.DataFrame":
    """The held-out rows.

    Raises:
        ValueError: no session is held out.
    """
    kept = frame.filter(frame["held_out"])
    if kept.is_empty():
        raise ValueError(
            f"--hold-out {hold_out}: of {frame['session_id'].n_unique()} session(s) none is held "
            "out; with fewer than three sessions of a class there is nothing to hold out: "
            "evaluate on other telemetry"
        )
    return kept


def _tuned_baselines(folder: Path, release: "Release") -> tuple[dict[str, Any], list[str]]:
    """The baselines from the release's checkpoint, or a note that it is absent."""
    from drl_assets.learning.export import release as releases

    try:
        return releases.tuned_baselines(folder, release.manifest), []
    except FileNotFoundError as cause:
        return {}, [f"{cause.filename} is absent: the table has no tuned baselines"]


_SHORT = {
    "utility": "utility",
    "containment": "caught",
    "benign_interruption": "benign hit",
    "time_to_containment_s": "after s",
    "damage_prevented": "saved",
    "review_load": "review",
    "containment_at_1pct": "at 1 %",
}


def _print_table(version: str, result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{version} (drl) on {result['episodes']} episodes, {result['malicious']} malicious, "
        f"of {result['sessions']} sessions; {result['unlabelled']} unlabelled left out"
    )
    table.box, table.padding = box.SIMPLE, (0, 1, 0, 0)
    table.add_column("policy", no_wrap=True)
    for name in _SHORT.values():
        table.add_column(name, justify="right")
    for policy, metrics in result["policies"].items():
        cells = ["–" if metrics[n] is None else f"{metrics[n]:z.3f}" for n in _SHORT]  # noqa: RUF001
        table.add_row(policy, *cells, style="bold" if policy == "drl" else None)
    out.print(table)
    for name, interval in result["advantage"].items():
        if interval is None:
            err.print("one session only: no confidence interval")
            break
        out.print(
            f"  drl minus {name}: mean return between {interval[0]:+.3f} and {interval[1]:+.3f} "
            "(95 %, sessions resampled)"
        )
    for note in result["notes"]:
        err.print(f"  note: {note}")


def _experiences(
    paths: list[Path], costs: "CostTable", hold_out: float, quiet: bool
) -> "pl.DataFrame":
    from drl_assets.sources.importer import read_events
    from drl_assets.tables import transforms

    with progress_bar("reading", quiet=quiet) as update:
        events = read_events(paths, progress=update)
    frame = transforms.experiences_of([list(events)], costs)
    return transforms.hold_out(frame, hold_out, {})
