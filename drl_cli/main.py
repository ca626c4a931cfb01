"""The command line `drl`: every command and group, and the entry point of the console script.

Commands import what they need when they run, so that `drl --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from drl_cli.commands import api_keys, pattern_keys, patterns, releases, telemetry, train
from drl_cli.configuration import current_settings
from drl_cli.output import err, exit_on_expected_error, out

app = typer.Typer(
    name="drl",
    help="Learn from sandbox telemetry when to watch, isolate, terminate, quarantine or ask an "
    "analyst; evaluate that policy and serve it. Start with [bold]drl demo[/] or [bold]drl up[/].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bundle_app = typer.Typer(
    help="Releases of models: verify, roll back, promote, prune; rotate their signing keys.",
    no_args_is_help=True,
)
app.add_typer(bundle_app, name="bundle")


@app.callback()
def begin() -> None:
    """Read the configuration anew for each run, where several share a process."""
    current_settings.cache_clear()


@app.command()
def up() -> None:
    """Run everything: database, Dagster daemon and UI, and the service. Ctrl-C stops everything.

    The embedded PostgreSQL is used unless DRL_DATABASE_URL is set. State lives in DRL_HOME
    (default .drl). Ports: DRL_UI_PORT (3000) and DRL_SERVING__PORT (8000).
    """
    from drl_cli.local import up as processes

    configured = current_settings()

    def ready(_: str) -> None:
        out.print(
            f"[bold green]ready[/]  UI http://127.0.0.1:{configured.ui_port}   "
            f"service http://{configured.serving.host}:{configured.serving.port}/schema\n"
            "next: in another terminal, [bold]drl import PATH[/]; "
            "a model is trained and released from it. Ctrl-C stops everything."
        )

    raise SystemExit(processes.up(configured, on_ready=ready))


@app.command()
def demo(
    telemetry: Annotated[
        Path | None,
        typer.Option(help="File or folder of telemetry (default: the recorded sample)."),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop after the first decision, with exit status 0."),
    ] = False,
) -> None:
    """From telemetry to a decision over HTTP, with everything running; keeps running after it."""
    from drl_cli.commands import demo as demonstration

    raise SystemExit(demonstration.run(current_settings(), telemetry, once=once))


@app.command()
def serve() -> None:
    """Run the inference service alone; it loads each new release of the model store."""
    # a program of its own: what this one has imported would stay in the workers
    os.execv(sys.executable, [sys.executable, "-m", "drl_serving"])  # noqa: S606


telemetry.register(app)
train.register(app)
releases.register(bundle_app)
patterns.register(app)
pattern_keys.register(app)
api_keys.register(app)


def main() -> None:
    """Entry point of the console script."""
    with exit_on_expected_error():
        try:
            app()
        except KeyboardInterrupt:
            err.print("stopped")
            sys.exit(130)


if __name__ == "__main__":
    main()
