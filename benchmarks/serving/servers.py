"""The servers that are compared: how each is started, and how it is asked."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.serving import payloads
from benchmarks.serving.payloads import Wire
from benchmarks.serving.release import publish
from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.settings import Serving
from drl_serving.access.api_keys import KeyFile

PEERS = "benchmarks.serving.peers"
MAX_IN_FLIGHT = Serving().max_in_flight
UVICORN = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@dataclass(frozen=True)
class Server:
    """One way to serve the graph."""

    name: str
    command: Callable[[int], list[str]]
    """Port -> command line."""
    wire: Wire
    environ: Callable[[int], Mapping[str, str]] = field(default=lambda port: {})


@dataclass(frozen=True)
class Home:
    """A released model, a key of the service, and the settings of a production."""

    path: Path
    model: Path
    """The graph that every server serves."""
    key: str

    @property
    def headers(self) -> dict[str, str]:
        """What a caller of our service sends."""
        return {"Authorization": f"Bearer {self.key}", "traceparent": TRACE}


def release(path: Path) -> Home:
    """A home folder with one released model and an API key."""
    model = publish(path)
    _, key = KeyFile(path / "keys").create("benchmark", ["decide"])
    return Home(path, model, key)


def twin(home: Home, path: Path) -> Home:
    """Another home of the same release and key."""
    for name in ("models", "keys"):
        shutil.copytree(home.path / name, path / name)
    return replace(home, path=path)


def environ(
    home: Home,
    database: str,
    *,
    port: int,
    workers: int = 1,
    log_share: float = 0.01,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> dict[str, str]:
    """The service with all it has in production, but TLS, which the peers are without as well."""
    metrics = home.path / "state" / f"metrics-{port}"
    metrics.mkdir(parents=True, exist_ok=True)
    return {
        "DRL_HOME": str(home.path),
        "DRL_DATABASE_URL": database,
        "DRL_SERVING__PORT": str(port),
        "DRL_SERVING__WORKERS": str(workers),
        "DRL_SERVING__DECISION_LOG_SHARE": str(log_share),
        "DRL_SERVING__MAX_IN_FLIGHT": str(max_in_flight),
        "DRL_ACCESS__RATE_PER_S": "1000000",
        "DRL_ACCESS__RATE_BURST": "1000000",
        "DRL_OBSERVABILITY__LOG_FILE": "service.jsonl",
        # one worker counts in its own memory; here it counts in mapped files, as several do
        **({"PROMETHEUS_MULTIPROC_DIR": str(metrics)} if workers == 1 else {}),
    }


def ours(home: Home, database: str, **how: Any) -> Server:
    """Our service, for decisions; `how` as in `environ`."""
    return Server(
        "drl" if how.get("log_share", 0.0) < 1 else "drl, log all",
        lambda port: [sys.executable, "-m", "drl_serving"],
        payloads.as_events("/v1/decisions", home.headers),
        lambda port: environ(home, database, port=port, **how),
    )


def peers(python: str, home: Home) -> list[Server]:
    """The peers, in the environment of an interpreter."""
    event = payloads.as_events
    model = {"BENCH_MODEL": str(home.model)}

    def bento(port: int) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        return [python, "-m", "bentoml", "serve", f"{PEERS}.bento:Policy", *where]

    def mlserver(port: int) -> dict[str, str]:
        ports = {"MLSERVER_HTTP_PORT": port, "MLSERVER_GRPC_PORT": port + 1}
        # no pool of processes behind the one that answers: its cheapest way
        ports |= {"MLSERVER_METRICS_PORT": port + 2, "MLSERVER_PARALLEL_WORKERS": 0}
        return model | {name: str(value) for name, value in ports.items()}

    main = "import sys; from mlserver.cli import main; sys.exit(main())"
    return [
        _uvicorn("bare ASGI", python, f"{PEERS}.bare:app", event("/", {}), model),
        _uvicorn("FastAPI", python, f"{PEERS}.fast:app", event("/decide", {}), model),
        Server(
            "MLServer",
            lambda port: [python, "-c", main, "start", "benchmarks/serving/peers/mlserver"],
            payloads.as_tensors("/v2/models/drl-policy/infer", {}),
            mlserver,
        ),
        Server(
            "LitServe",
            lambda port: [python, "-m", f"{PEERS}.lit", str(port)],
            event("/predict", {}),
            lambda port: model,
        ),
        Server("BentoML", bento, event("/decide", {}), lambda port: model),
    ]


def echo(workers: int) -> Server:
    """uvicorn around nothing, to know the machine's own noise."""
    server = _uvicorn("echo", sys.executable, f"{PEERS}.bare:echo", payloads.as_events("/", {}), {})
    return replace(server, command=lambda port: [*server.command(port), "--workers", str(workers)])


def _uvicorn(name: str, python: str, app: str, wire: Wire, environ: Mapping[str, str]) -> Server:
    return Server(
        name,
        lambda port: [python, "-m", "uvicorn", app, "--port", str(port), *UVICORN],
        wire,
        lambda port: environ,
    )


@contextlib.contextmanager
def database(home: Path) -> Iterator[tuple[str, int]]:
    """A migrated PostgreSQL: its URL and the process id of its server."""
    server = EmbeddedPostgres(home / "postgres")
    with server as url:
        migrate(url)
        assert server.pid is not None
        yield url, server.pid
