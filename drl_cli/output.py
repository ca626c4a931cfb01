"""Command-line output: consoles, progress bars, JSON documents, and the error boundary."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]
"""The option of every command that has something to print."""

out = Console()
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """Print a value as one JSON document on standard output, None as null.

    Raises:
        ValueError: it holds a number that JSON does not have, such as NaN.
    """
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), allow_nan=False) + "\n")


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; gives `update(done, total, text="")`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=quiet, transient=False) as bar:
        task = bar.add_task(title, total=None, text="")

        def update(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield update


@contextmanager
def exit_on_expected_error() -> Iterator[None]:
    """Error boundary: an expected error ends the command with one line and exit status 1."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        err.print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error
