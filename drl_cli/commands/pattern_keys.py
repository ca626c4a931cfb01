"""`drl patterns`: rotate the keys that encrypt patterns' metadata; look at the dead-letter queue.

Rotation makes a new key and encrypts every stored pattern with it; after an interruption it goes on
with `--resume`. A key may be removed when neither the database nor the outbox needs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from drl_cli.configuration import current_settings
from drl_cli.output import Json, out, print_json, progress_bar
from drl_core.embedded_database import running_url
from drl_core.settings import Settings
from drl_core.storage import patterns
from drl_core.storage.database import connect
from drl_core.storage.encryption import Keyring
from drl_core.storage.outbox import Outbox


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(help="Encryption keys and dead letters of the stored patterns.")
    group.command("keys")(keys)
    group.command("rotate-key")(rotate_key)
    group.command("remove-key")(remove_key)
    group.command("dead-letters")(dead_letters)
    app.add_typer(group, name="patterns", no_args_is_help=True)


def keys(json: Json = False) -> None:
    """List the encryption keys, and how many patterns need each; the last one is in use."""
    from rich import box
    from rich.table import Table

    configured = current_settings()
    used = _used(configured)
    rows = [
        {"key_id": key.key_id, "file": str(key.path), "patterns": used.pop(key.key_id, 0)}
        for key in Keyring(configured.keys_path).files()
    ]
    clear = used.pop(None, 0)
    missing = {key: count for key, count in used.items() if key}
    if json:
        print_json({"keys": rows, "in_clear": clear, "missing": missing})
        return
    table = Table("key", "patterns", "file", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(str(row["key_id"]), str(row["patterns"]), str(row["file"]))
    for key, count in missing.items():
        table.add_row(key, str(count), "[bold red]missing: put it back from a backup[/]")
    out.print(table)
    if clear:
        out.print(f"{clear} patterns are not encrypted: run drl patterns rotate-key")


def rotate_key(
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted rotation with the newest key.")
    ] = False,
) -> None:
    """Make a new key and encrypt all stored patterns with it, also those not yet encrypted.

    The service may run meanwhile: it uses the new key at once. Afterwards, `drl patterns
    remove-key` removes old keys.
    """
    configured = current_settings()
    keyring = Keyring(configured.keys_path)
    with _database(configured) as url:
        newest = keyring.newest() if resume else keyring.rotate()
        with progress_bar("encrypting patterns") as update:
            count = patterns.reseal(url, keyring, update)
    out.print(f"key {newest} is in use; {count} patterns were encrypted with it")


def remove_key(
    key_id: Annotated[str, typer.Argument(help="As `drl patterns keys` lists it.")],
) -> None:
    """Remove a key that no pattern needs; backups encrypted with it cannot be read any more."""
    configured = current_settings()
    needed = _used(configured).get(key_id, 0)
    if needed:
        raise ValueError(
            f"{needed} patterns need key {key_id}: run drl patterns rotate-key and wait until the "
            "outbox is drained"
        )
    Keyring(configured.keys_path).remove(key_id)
    out.print(f"key {key_id} removed")


def dead_letters(
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Put all of them back into the outbox.")
    ] = False,
    json: Json = False,
) -> None:
    """List the outbox's dead letters: rows that the database refused, and why; the oldest 100."""
    from rich import box
    from rich.table import Table

    outbox = _outbox(current_settings())
    if requeue:
        out.print(f"{outbox.requeue()} rows requeued")
        return
    letters = outbox.dead_letters()
    if json:
        print_json([{"topic": d.row.topic, "key": d.row.key, "reason": d.reason} for d in letters])
        return
    table = Table("topic", "key", "reason", box=box.SIMPLE_HEAD)
    for letter in letters:
        table.add_row(letter.row.topic, letter.row.key, letter.reason.split("\n")[0])
    out.print(table if letters else "no dead letters")


def _used(configured: Settings) -> dict[str | None, int]:
    """How many patterns, stored or queued, need each key; None is for unencrypted ones."""
    with _database(configured) as url, connect(url) as connection:
        used = patterns.keys_in_use(connection)
    for row in _outbox(configured).iterate(patterns.TOPIC):
        key = patterns.payload(row.payload).key_id
        if key is not None:
            used[key] = used.get(key, 0) + 1
    return used


def _outbox(configured: Settings) -> Outbox:
    return Outbox(configured.state_path / "outbox.sqlite")


@contextmanager
def _database(configured: Settings) -> Iterator[str]:
    """The configured database, else the embedded one: that of a running `drl up`, or started."""
    from drl_cli.local import up

    running = None if configured.database_url else running_url(configured.home_path / "postgres")
    if running is not None:
        yield running
        return
    with up.database(configured) as url:
        yield url
