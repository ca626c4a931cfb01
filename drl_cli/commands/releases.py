"""`drl bundle`: verify, roll back, promote and prune releases; rotate their signing keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from drl_cli.output import out, print_json

if TYPE_CHECKING:
    from drl_core.release.store import Release

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]


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
    folder: Annotated[Path, typer.Argument(help="A bundle or model store.")], json: Json = False
) -> None:
    """Check signature, checksum, contract and golden answers of the current release."""
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


def rollback(
    folder: Annotated[
        Path | None, typer.Argument(help="The model store; that of DRL_HOME by default.")
    ] = None,
) -> None:
    """Release the model before the current one again, under a new sequence number."""
    from drl_core import settings
    from drl_core.release.signing_keys import signing_key, trusted_keys
    from drl_core.release.store import ModelStore

    home = settings.load()
    store = ModelStore(folder or home.models_path)
    key = signing_key(home.keys_path)
    manifest = store.rollback(trusted_keys(home.keys_path), key)
    out.print(f"release {manifest.sequence} serves {manifest.model_version} again")


Store = Annotated[
    Path | None, typer.Option("--store", help="The model store; that of DRL_HOME by default.")
]


def challenge(
    folder: Annotated[Path, typer.Argument(help="A signed bundle (`drl train --out`).")],
    store: Store = None,
) -> None:
    """Stage a bundle's model, signed, so that it can be tried beside the served one."""
    from drl_core import settings
    from drl_core.release import graph_check
    from drl_core.release.signing_keys import signing_key
    from drl_core.release.store import ModelStore

    home = settings.load()
    release = load_release(folder)
    graph_check.check(release.model)
    key = signing_key(home.keys_path)
    target = ModelStore(store or home.models_path)
    manifest = target.stage(release.model, release.manifest, key)
    out.print(
        f"staged {manifest.model_version} as {manifest.sequence}; nothing is served yet\n"
        f"next: set [bold]serving.challenger[/] to {manifest.model_version} in the configuration, "
        f"then [bold]drl bundle promote {manifest.model_version}[/]"
    )


def promote(
    version: Annotated[str, typer.Argument(help="A model version in the store.")],
    store: Store = None,
) -> None:
    """Release a staged or an earlier model, under a new sequence number."""
    from drl_core import settings
    from drl_core.release.signing_keys import signing_key, trusted_keys
    from drl_core.release.store import ModelStore

    home = settings.load()
    target = ModelStore(store or home.models_path)
    release = target.find(version, trusted_keys(home.keys_path))
    manifest = msgspec.structs.replace(release.manifest, rollback_of=None)
    manifest = target.publish(release.model, manifest, signing_key(home.keys_path))
    out.print(f"release {manifest.sequence} serves {manifest.model_version}")


def prune(
    keep: Annotated[int, typer.Option(min=1, help="Releases that stay.")] = 20,
    store: Store = None,
) -> None:
    """Remove old releases and their models; never the current one or the challenger."""
    from drl_core import settings
    from drl_core.release.signing_keys import trusted_keys
    from drl_core.release.store import ModelStore

    home = settings.load()
    target = ModelStore(store or home.models_path)
    challenger = home.serving.challenger
    removed = target.prune(
        max(keep, home.serving.keep_models),
        trusted_keys(home.keys_path),
        [challenger] if challenger else [],
    )
    out.print(f"removed {len(removed)} files, {len(target.releases())} releases stay")


def rotate_key() -> None:
    """Sign with a new key from now on, the current release first; the old one stays trusted."""
    from drl_core import settings
    from drl_core.release import signing_keys
    from drl_core.release.store import ModelStore

    home = settings.load()
    before = set(signing_keys.trusted_keys(home.keys_path))
    key = signing_keys.rotate(home.keys_path)
    name = signing_keys.key_id(key.public_key())
    target = ModelStore(home.models_path)
    if target.current_path.exists():
        manifest = target.reissue(signing_keys.trusted_keys(home.keys_path), key)
        out.print(f"release {manifest.sequence} is {manifest.model_version}, signed anew")
    out.print(
        f"[bold]{name}[/] signs from now on; still trusted: {', '.join(sorted(before)) or 'none'}\n"
        f"next: copy trusted/{name}.pub to every service with keys of its own, then "
        "[bold]drl bundle distrust KEY_ID[/] for the old ones"
    )


def distrust(key_id: Annotated[str, typer.Argument(help="16 hex digits.")]) -> None:
    """Take no release any more that a key has signed."""
    from drl_core import settings
    from drl_core.release import signing_keys

    signing_keys.distrust(settings.load().keys_path, key_id)
    out.print(f"{key_id} is trusted no more")


def load_release(folder: Path) -> "Release":
    """The current release of a bundle or model store, verified.

    Raises:
        ValueError: the folder holds none.
    """
    from drl_core import settings
    from drl_core.release.signing_keys import trusted_keys
    from drl_core.release.store import ModelStore

    keys = folder / "keys"
    if not (keys / "trusted").is_dir():
        keys = settings.load().keys_path
    try:
        return ModelStore(folder).load(trusted_keys(keys))
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no release: make one with `drl train --telemetry PATH --out {folder}`"
        ) from None
