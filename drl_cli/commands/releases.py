"""`drl bundle`: verify, roll back, stage, promote and prune releases; rotate their signing keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drl_cli.configuration import current_settings
from drl_cli.output import Json, out, print_json

if TYPE_CHECKING:
    from drl_core.release.store import ModelStore, Release

_STORE_HELP = "The model store (default: that of DRL_HOME)."
Store = Annotated[Path | None, typer.Option("--store", help=_STORE_HELP)]


def register(bundle_app: typer.Typer) -> None:
    """Add the commands."""
    bundle_app.command()(verify)
    bundle_app.command()(rollback)
    bundle_app.command()(challenge)
    bundle_app.command()(promote)
    bundle_app.command()(prune)
    bundle_app.command("rotate-key")(rotate_key)
    bundle_app.command()(distrust)


def verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a release (`drl train --out`), or a model store.")
    ],
    json: Json = False,
) -> None:
    """Check signature, checksum, contract and golden outputs of the current release."""
    from drl_assets.learning.export import onnx_export
    from drl_core.release import graph_check

    release = load_release(folder)
    graph_check.check(release.model)
    onnx_export.check_golden(release)
    manifest = release.manifest
    if json:
        print_json({**msgspec.to_builtins(manifest), "golden": len(manifest.golden.q_values)})
        return
    out.print(
        f"[bold green]valid[/]: {manifest.model_version}, release {manifest.sequence}, "
        f"{manifest.size_bytes:,} bytes, features version {manifest.features_version}, trained "
        f"{manifest.training_date} on {manifest.training_episodes} episodes"
    )


def rollback(folder: Annotated[Path | None, typer.Argument(help=_STORE_HELP)] = None) -> None:
    """Release the model before the current one again, under a new sequence number."""
    from drl_core.release.signing_keys import signing_key, trusted_keys

    keys = current_settings().keys_path
    manifest = _store(folder).rollback(trusted_keys(keys), signing_key(keys))
    out.print(f"release {manifest.sequence} serves {manifest.model_version} again")


def challenge(
    folder: Annotated[Path, typer.Argument(help="Folder of a release (`drl train --out`).")],
    store: Store = None,
) -> None:
    """Stage a model, signed, as a challenger that can be tried beside the served model."""
    from drl_core.release import graph_check
    from drl_core.release.signing_keys import signing_key

    release = load_release(folder)
    graph_check.check(release.model)
    key = signing_key(current_settings().keys_path)
    manifest = _store(store).stage(release.model, release.manifest, key)
    out.print(
        f"staged {manifest.model_version} as {manifest.sequence}; the served model is unchanged\n"
        f"next: set [bold]serving.challenger[/] to {manifest.model_version} in the configuration, "
        f"then [bold]drl bundle promote {manifest.model_version}[/]"
    )


def promote(
    version: Annotated[str, typer.Argument(help="A model version in the store.")],
    store: Store = None,
) -> None:
    """Release a staged or an earlier model, under a new sequence number."""
    from drl_core.release.signing_keys import signing_key, trusted_keys

    keys = current_settings().keys_path
    target = _store(store)
    release = target.find(version, trusted_keys(keys))
    manifest = msgspec.structs.replace(release.manifest, rollback_of=None)
    manifest = target.publish(release.model, manifest, signing_key(keys))
    out.print(f"release {manifest.sequence} serves {manifest.model_version}")


def prune(
    keep: Annotated[int, typer.Option(min=1, help="How many of the latest releases to keep.")] = 20,
    store: Store = None,
) -> None:
    """Remove old releases and their models; the current one and the challenger are kept."""
    from drl_core.release.signing_keys import trusted_keys

    settings = current_settings()
    target = _store(store)
    challenger = settings.serving.challenger
    removed = target.prune(
        max(keep, settings.serving.keep_models),
        trusted_keys(settings.keys_path),
        [challenger] if challenger else [],
    )
    out.print(f"removed {len(removed)} files; {len(target.releases())} releases are kept")


def rotate_key() -> None:
    """Make a new signing key and re-sign the current release; the old key stays trusted."""
    from drl_core.release import signing_keys

    keys = current_settings().keys_path
    before = set(signing_keys.trusted_keys(keys))
    key = signing_keys.rotate(keys)
    name = signing_keys.key_id(key.public_key())
    target = _store(None)
    if target.current_path.exists():
        manifest = target.reissue(signing_keys.trusted_keys(keys), key)
        out.print(f"release {manifest.sequence} is {manifest.model_version}, signed with it")
    out.print(
        f"signing key: [bold]{name}[/]; still trusted: {', '.join(sorted(before)) or 'none'}\n"
        f"next: copy trusted/{name}.pub to every service with keys of its own, then "
        "[bold]drl bundle distrust KEY_ID[/] for the old ones"
    )


def distrust(
    key_id: Annotated[str, typer.Argument(help="Id of the signing key, 16 hex digits.")],
) -> None:
    """Refuse from now on every release that a key has signed."""
    from drl_core.release import signing_keys

    signing_keys.distrust(current_settings().keys_path, key_id)
    out.print(f"{key_id} is not trusted any more")


def load_release(folder: Path) -> "Release":
    """The current release of a folder, verified with the keys beside it, else with those of home.

    Raises:
        ValueError: the folder holds none.
    """
    from drl_core.release.signing_keys import trusted_keys
    from drl_core.release.store import ModelStore

    keys = folder / "keys"
    if not (keys / "trusted").is_dir():
        keys = current_settings().keys_path
    try:
        return ModelStore(folder).load(trusted_keys(keys))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no release: make one with `drl train --telemetry PATH --out {folder}`"
        ) from None


def _store(folder: Path | None) -> "ModelStore":
    from drl_core.release.store import ModelStore

    return ModelStore(folder or current_settings().models_path)
