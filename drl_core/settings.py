"""The typed configuration: layered JSON files, environment variables over them, validated.

`load` reads `config/default.json`, then `config/<DRL_ENV>.json` over it, then variables named
`DRL_<SECTION>__<FIELD>` (or `DRL_<FIELD>` at the top), and gives `Settings`. A wrong value is a
`SettingsError` that names the field and where it came from. A field whose type is `Reloadable` may
change while the service runs (`drl_serving.reload`); any other holds from the next start.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from drl_core.policy.reward import CostTable

Port = Annotated[int, Meta(ge=1, le=65535)]
PositiveInt = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]

T = TypeVar("T")
Reloadable = Annotated[T, Meta(extra={"reload": True})]
"""A field, or a section with all its fields, that may be changed while the service runs."""


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Learning(_Section, frozen=True):
    """How a policy is learned."""

    preset: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]*$")] = "default"
    """Name of the algorithm: default (full-information fitted Q), report (the report's DQN), or
    another of `drl_assets.learning.learners.registry`."""
    seed: int = 0
    gradient_steps: PositiveInt = 5000
    """Preset `default`, training from scratch."""
    incremental_steps: PositiveInt = 1500
    """Preset `default`, continuing from the champion."""
    validation_steps: PositiveInt = 800
    """Gradient steps for each candidate, where preset `default` selects its regularisation."""
    members: PositiveInt = 4
    """Networks in the ensemble of preset `default`, each trained without some sessions."""
    member_layers: list[PositiveInt] = field(default_factory=lambda: [64, 64])
    """Hidden layers of each member."""
    episodes: PositiveInt = 500
    """Training episodes of preset `report`."""
    hidden_layers: list[PositiveInt] = field(default_factory=lambda: [256, 256])
    """Hidden layers of preset `report`."""
    replay_capacity: Annotated[int, Meta(ge=10_000)] = 100_000
    test_share: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    """Share of sessions that are held out for evaluation, chosen by hash, never trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Retraining(_Section, frozen=True):
    """When the sensors act."""

    min_new_experiences: PositiveInt = 500
    keep_live_batches: Annotated[int, Meta(ge=1, le=9_000)] = 500
    """Older batches are compacted by day."""


class Gates(_Section, frozen=True):
    """What a challenger must satisfy to be released; utilities are in the cost table's unit."""

    delta: Annotated[float, Meta(ge=0)] = 0.1
    """How much less utility per episode than the champion's, or a baseline's, is tolerated."""
    delta_per_type: Annotated[float, Meta(ge=0)] = 0.5
    """The same within an attack type, which has fewer episodes."""
    type_sessions: Annotated[int, Meta(ge=2)] = 10
    """Held-out sessions that an attack type needs to be judged separately."""
    interruption_budget: Share = 0.01
    """Share of benign episodes that may be ended by terminate or quarantine."""
    review_cap: Share = 0.5
    """Share of all episodes that may be sent to review."""
    oracle_regret: Annotated[float, Meta(gt=0)] = 0.1
    """On generators of known optimum, as a share of always-monitor's regret."""
    drift_psi: Annotated[float, Meta(gt=0)] = 0.25
    """Population stability index of a feature above which a warning is given."""
    drift_ks: Annotated[float, Meta(gt=0, le=1)] = 0.3
    """The same of the Kolmogorov-Smirnov distance."""
    label_auc: Share = 0.5
    """New labels are refused where the champion's AUC on them is significantly below this; with 0
    all labels are accepted, once a person has checked them."""
    label_surprise: Annotated[float, Meta(ge=0)] = 1.0
    """Nats of log-loss on new labels above the champion's out-of-fold loss: a warning."""


Mode = Literal["observe", "enforce"]


class Serving(_Section, frozen=True):
    """The inference service."""

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    """Open Inference Protocol over gRPC; off unless set."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    """Processes that answer on `port`; they share episodes, limits and metrics."""
    tls_certificate: str | None = None
    tls_private_key: str | None = None
    """PEM files; both or none."""
    mode: Reloadable[Mode] = "observe"
    """`observe` decides and records, `enforce` is for dispatching."""
    sandbox_modes: Reloadable[dict[str, Mode]] = field(default_factory=dict)
    """By sandbox id, where it is not `mode`."""
    containment_margin: Reloadable[Annotated[float, Meta(ge=0)]] = 0.0
    """How far the Q-value of a containing action must be above the best other one's."""
    challenger: Reloadable[str | None] = None
    """Model version that decides beside the served one; its differences are counted."""
    canary_share: Reloadable[Share] = 0.0
    """Share of episodes for which the challenger's decision is the answer."""
    decision_log_share: Reloadable[Share] = 1.0
    """Share of episodes whose decisions are kept for lineage."""
    decision_log_days: Reloadable[PositiveInt] = 90
    """How long they are kept."""
    reload_interval_s: Annotated[float, Meta(ge=0.01, le=60)] = 0.05
    keep_models: Annotated[int, Meta(ge=1, le=16)] = 3
    """Releases that stay loaded, the served one included."""
    max_episodes: PositiveInt = 100_000
    """Episodes whose carry is kept (LRU eviction)."""
    episode_ttl_s: PositiveInt = 86_400
    """An episode without events for this long is evicted."""
    max_body_bytes: Reloadable[PositiveInt] = 16 << 20
    """Of one request; over gRPC, a change holds from the next start."""
    max_batch: Reloadable[PositiveInt] = 10_000
    """Records in one request."""
    max_in_flight: Reloadable[PositiveInt] = 256
    """Requests at work at once in one worker; above it the answer is 503 with Retry-After. Lower:
    under overload those that are accepted are answered sooner, but fewer that come at once are."""
    request_timeout_s: Reloadable[PositiveInt] = 30
    """Longest time that a caller may take to send a request, and the service to answer it."""
    telemetry_buffer: Annotated[int, Meta(ge=10_000)] = 10_000
    """Events buffered before they are durable, in one worker; above it: back-pressure (503)."""


class Access(_Section, frozen=True):
    """Authentication and rate limits of the service. API keys are made by `drl keys`."""

    rate_per_s: Reloadable[Annotated[float, Meta(ge=0)]] = 0.0
    """Requests per second and caller, over all workers; 0: no limit."""
    rate_burst: Reloadable[PositiveInt] = 1000
    """Requests that a caller may send at once (the token bucket's size)."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_keys: str | None = None
    """File with the issuer's public keys: a JWKS document, or one PEM."""


class Observability(_Section, frozen=True):
    """Logs and traces."""

    log_level: Reloadable[Literal["debug", "info", "warning", "error"]] = "info"
    log_file: str | None = None
    """JSON lines beside standard output, rotated; relative to `home`."""
    log_max_bytes: PositiveInt = 50 << 20
    log_keep: PositiveInt = 5
    otlp_endpoint: str | None = None
    """OpenTelemetry over HTTP, such as http://127.0.0.1:4318; off unless set."""
    trace_share: Reloadable[Share] = 0.01
    """Share of requests without a sampling decision of their caller whose trace is exported."""


class Alerts(_Section, frozen=True):
    """Where a failed run is reported, beside the log."""

    webhook_url: str | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0


class Settings(_Section, frozen=True):
    """Everything that can be configured."""

    environment: str = "default"
    home: str = ".drl"
    """Folder of all state: landing zone, tables, checkpoints, models, keys, embedded database."""
    database_url: str | None = None
    """PostgreSQL 15 or later with pgvector; unset: the embedded one."""
    ui_port: Port = 3000
    learning: Reloadable[Learning] = field(default_factory=Learning)
    retraining: Reloadable[Retraining] = field(default_factory=Retraining)
    gates: Reloadable[Gates] = field(default_factory=Gates)
    serving: Serving = field(default_factory=Serving)
    access: Access = field(default_factory=Access)
    observability: Observability = field(default_factory=Observability)
    alerts: Reloadable[Alerts] = field(default_factory=Alerts)
    costs: Reloadable[CostTable] = field(default_factory=CostTable)

    @property
    def home_path(self) -> Path:
        return Path(self.home).expanduser().resolve()

    @property
    def landing_path(self) -> Path:
        """The landing zone's folder."""
        return self.home_path / "landing"

    @property
    def models_path(self) -> Path:
        """The model store's folder."""
        return self.home_path / "models"

    @property
    def keys_path(self) -> Path:
        """Signing key and trusted public keys."""
        return self.home_path / "keys"

    @property
    def state_path(self) -> Path:
        """What the service's workers share and what waits for the database."""
        return self.home_path / "state"

    @property
    def tables_path(self) -> Path:
        """Parquet tables of the asset graph."""
        return self.home_path / "tables"

    @property
    def checkpoints_path(self) -> Path:
        """Training checkpoints."""
        return self.home_path / "checkpoints"


class SettingsError(ValueError):
    """A configuration that cannot be used; the message names the field and what it should be."""


_SECTIONS = tuple(
    name for name in Settings.__struct_fields__ if isinstance(getattr(Settings(), name), Struct)
)
_RESERVED = {"DRL_ENV", "DRL_CONFIG"}


def load(folder: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration.

    Args:
        folder: holds `default.json` and `<environment>.json`; `DRL_CONFIG`, else `config/` in the
            working directory. Missing files mean defaults, unless the environment was named.
        environ: the environment variables.

    Raises:
        SettingsError: unreadable file, unknown field, wrong value.
    """
    folder = folder or Path(environ.get("DRL_CONFIG", "config"))
    name = environ.get("DRL_ENV", "default")
    merged: dict[str, Any] = {"environment": name}
    for path in dict.fromkeys((folder / "default.json", folder / f"{name}.json")):
        if path.exists():
            _merge(merged, _read(path))
        elif name != "default" and path.stem == name:
            raise SettingsError(f"DRL_ENV={name}, but {path} does not exist")
    try:
        file_settings = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as cause:
        raise SettingsError(f"configuration in {folder}: {cause}") from None
    return _apply_environment(file_settings, environ)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise SettingsError(f"{path}: {cause}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: a JSON object is expected")
    return content


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Deep merge, in place: a section of both is merged by field, anything else is replaced."""
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _apply_environment(settings: Settings, environ: Mapping[str, str]) -> Settings:
    merged: dict[str, Any] = msgspec.to_builtins(settings)
    for variable, text in environ.items():
        if not variable.startswith("DRL_") or variable in _RESERVED:
            continue
        path = variable.removeprefix("DRL_").lower().split("__")
        if len(path) == 2 and path[0] in _SECTIONS:
            section: dict[str, Any] = merged[path[0]]
        elif len(path) == 1 and path[0] in Settings.__struct_fields__ and path[0] not in _SECTIONS:
            section = merged
        else:
            continue  # DRL_ variables of other programs are ignored
        if path[-1] not in section:
            raise SettingsError(f"{variable}: there is no field {path[-1]} in {path[0]}")
        before = section[path[-1]]
        section[path[-1]] = _from_text(text)
        try:
            msgspec.convert(merged, Settings, strict=False)
        except msgspec.ValidationError as cause:
            section[path[-1]] = before
            raise SettingsError(f"{variable}={text!r}: {cause}") from None
    return msgspec.convert(merged, Settings, strict=False)


def _from_text(text: str) -> Any:
    if text[:1] in "[{":
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return text
