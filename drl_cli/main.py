"""The console script `drl`. A command imports what it needs when it runs: `--help` is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from drl_cli.commands import api_keys, patterns, releases, telemetry, train
from drl_cli.output import err, exit_on_expected_error, out

app = typer.Typer(
    name="drl",
    help="Learn from sandbox telemetry when to watch, isolate, terminate, quarantine or ask an "
    "analyst; check it; serve it. Start with [bold]drl demo[/] or [bold]drl up[/].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bundle_app = typer.Typer(
    help="Look at, verify and roll back released models.", no_args_is_help=True
)
app.add_typer(bundle_app, name="bundle")


@app.command()
def up() -> None:
    """Run everything: database, Dagster daemon and UI, and the service. Ctrl-C stops it all.

    The embedded PostgreSQL is used unless DRL_DATABASE_URL is set. State lives in DRL_HOME
    (default .drl). Ports: DRL_UI_PORT (3000) and DRL_SERVING__PORT (8000).
    """
    from drl_cli.local import up as processes
    from drl_core import settings

    configured = settings.load()

    def ready(_: str) -> None:
        out.print(
            f"[bold green]ready[/]  UI http://127.0.0.1:{configured.ui_port}   "
            f"service http://{configured.serving.host}:{configured.serving.port}/schema\n"
            "next: in another terminal, [bold]drl import PATH[/]; "
            "a new model follows by itself. Ctrl-C stops everything."
        )

    raise SystemExit(processes.up(configured, on_ready=ready))


@app.command()
def demo(
    telemetry: Annotated[
        Path | None,
        typer.Option(help="File or folder of telemetry; the recorded sample by default."),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End with exit status 0 after the first decision.")
    ] = False,
) -> None:
    """From telemetry to a decision over HTTP, with everything running; then stay up."""
    from drl_cli.commands import demo as demonstration
    from drl_core import settings

    raise SystemExit(demonstration.run(settings.load(), telemetry, once=once))


@app.command()
def serve() -> None:
    """Run the inference service alone; it takes new releases from the model store by itself."""
    # a program of its own: what this one has imported would stay in the workers
    os.execv(sys.executable, [sys.executable, "-m", "drl_serving"])  # noqa: S606


telemetry.register(app)
train.register(app)
releases.register(bundle_app)
patterns.register(app)
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
