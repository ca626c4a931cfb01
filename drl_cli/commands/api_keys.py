"""`drl keys`: create, list, rotate and revoke the service's API keys; each is audited.

Only hashes of keys are stored; a running service picks a change up within about a second.
"""

import datetime as dt
import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from drl_cli.configuration import current_settings
from drl_cli.output import Json, err, out, print_json

if TYPE_CHECKING:
    from drl_serving.access.api_keys import KeyFile

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

keys_app = typer.Typer(help="API keys of the service: create, list, rotate, revoke.")


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    scope: Annotated[
        list[str], typer.Option(help="decide, ingest, patterns, review, publish or admin.")
    ],
    expires: Annotated[
        str | None, typer.Option(help="When it expires: 12h, 90d, 52w, or a date (default: never).")
    ] = None,
    json: Json = False,
) -> None:
    """Create a key. It is shown once; only its hash is kept."""
    key, text = _file().create(name, scope, _until(expires))
    _note("keys.created", key.id)
    _show(text, key.id, json)


@keys_app.command("list")
def list_keys(json: Json = False) -> None:
    """List all keys, revoked and expired ones included."""
    from rich.table import Table

    keys = _file().read()
    if json:
        print_json([{f: getattr(key, f) for f in _SHOWN} for key in keys])
        return
    table = Table("id", "name", "scopes", "created", "state")
    for key in keys:
        scopes, state = ", ".join(sorted(key.scopes)), _state(key.revoked, key.expires)
        table.add_row(key.id, key.name, scopes, f"{key.created:%Y-%m-%d %H:%M}", state)
    out.print(table)


@keys_app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Revoke a key; running services refuse it within about a second."""
    key = _file().revoke(key_id)
    _note("keys.revoked", key.id)
    out.print(f"{key.id} ({key.name}) is revoked", markup=False)


@keys_app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    grace: Annotated[
        str, typer.Option(help="How long the old secret stays valid: 0m, 24h.")
    ] = "1h",
    json: Json = False,
) -> None:
    """Give a key a new secret; the old one stays valid for the grace period."""
    key, text = _file().rotate(key_id, _span(grace))
    _note("keys.rotated", key.id)
    _show(text, key.id, json)


_SHOWN = ("id", "name", "scopes", "created", "expires", "revoked", "previous_until")


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(keys_app, name="keys", no_args_is_help=True)


def _file() -> "KeyFile":
    from drl_serving.access.api_keys import KeyFile

    return KeyFile(current_settings().keys_path)


def _note(action: str, key_id: str) -> None:
    from drl_serving.audit.log import Audit

    with Audit(current_settings().home_path / "audit") as audit:
        audit.record(action, actor=f"cli:uid-{os.getuid()}", target=f"key:{key_id}")


def _show(text: str, key_id: str, json: bool) -> None:
    if json:
        print_json({"id": key_id, "key": text})
        return
    out.print(text, markup=False, highlight=False, soft_wrap=True)
    err.print(f"Store it now, it is not shown again. To revoke it: drl keys revoke {key_id}")


def _until(expires: str | None) -> dt.datetime | None:
    if expires is None:
        return None
    if re.fullmatch(r"\d+[mhdw]", expires):
        return dt.datetime.now(dt.UTC) + _span(expires)
    try:
        when = dt.datetime.fromisoformat(expires)
    except ValueError:
        raise ValueError(f"expires: {expires!r} is neither 12h, 90d, 52w nor a date") from None
    return when if when.tzinfo else when.replace(tzinfo=dt.UTC)


def _span(text: str) -> dt.timedelta:
    if not re.fullmatch(r"\d{1,5}[mhdw]", text):
        raise ValueError(f"{text!r} is not a duration such as 30m, 12h, 90d or 52w")
    return dt.timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


def _state(revoked: dt.datetime | None, expires: dt.datetime | None) -> str:
    if revoked is not None:
        return f"revoked {revoked:%Y-%m-%d}"
    if expires is None:
        return "valid"
    return (
        f"{'expired' if expires <= dt.datetime.now(dt.UTC) else 'valid until'} {expires:%Y-%m-%d}"
    )
