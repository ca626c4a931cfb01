"""`drl similar`: nearest-neighbour search for known attack patterns, asked of the running service.

A recording goes in, for each of its episodes the nearest stored patterns come out. `DRL_API_KEY` is
sent with the query, where the service needs credentials.
"""

import json as jsonlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from drl_cli.configuration import current_settings
from drl_cli.output import Json, out, print_json
from drl_core.policy.actions import Action


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(similar)


def similar(
    telemetry: Annotated[Path, typer.Argument(help="File of telemetry, with or without labels.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Patterns per episode.")] = 3,
    json: Json = False,
) -> None:
    """Find the known attack patterns nearest to each episode of a recording (its last window).

    Asks the running service (DRL_SERVING__HOST, DRL_SERVING__PORT), with the API key in DRL_API_KEY
    where one is needed. Distance is Euclidean over the 30 features, each in 0..1.
    """
    from drl_assets.sources.importer import read_events
    from drl_assets.tables import transforms

    serving = current_settings().serving
    url = f"http://{serving.host}:{serving.port}/v1/patterns/search"
    frame = transforms.telemetry_frame([list(read_events([telemetry]))]).frame
    states = transforms.state_frame(frame).frame
    last = states.group_by("sandbox_id", "episode_id", maintain_order=True).last()
    found = [
        {
            "sandbox_id": row["sandbox_id"],
            "episode_id": row["episode_id"],
            "nearest": _search(url, {"features": row["state"], "limit": limit}),
        }
        for row in last.select("sandbox_id", "episode_id", "state").iter_rows(named=True)
    ]
    if json:
        print_json(found)
        return
    _print(found)


def _print(found: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("episode", "distance", box=box.SIMPLE_HEAD)
    for name in ("attack type", "contained by"):
        table.add_column(name, no_wrap=True)
    table.add_column("confidence")
    table.add_column("seen as")
    for one in found:
        name = f"{one['sandbox_id']}/{one['episode_id']}"
        if not one["nearest"]:
            table.add_row(name, "–", "no pattern is stored yet")  # noqa: RUF001
        for neighbour in one["nearest"]:
            pattern = neighbour["pattern"]
            table.add_row(
                name,
                f"{neighbour['distance']:.3f}",
                pattern["attack_type"],
                Action(pattern["action"]).label,
                f"{pattern['confidence']:.2f}",
                f"{pattern['sandbox_id']}/{pattern['episode_id']} step {pattern['step']}",
            )
            name = ""
    out.print(table)


def _search(url: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("DRL_API_KEY"):
        headers["X-API-Key"] = key
    body = jsonlib.dumps(query).encode()
    try:
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - our own service
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            found: list[dict[str, Any]] = jsonlib.loads(response.read())["items"]
            return found
    except urllib.error.HTTPError as error:
        problem = jsonlib.loads(error.read())
        raise ValueError(f"{url}: {problem.get('detail')}; {problem.get('next', '')}") from None
    except urllib.error.URLError as error:
        raise ValueError(
            f"{url}: {error.reason}; start the service with `drl up`, or set DRL_SERVING__PORT"
        ) from None
