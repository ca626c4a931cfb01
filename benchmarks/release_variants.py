"""Variants of one model for `benchmarks.releases`: sound releases, and hostile ones in eight ways.

A hostile one is put straight into the store, as somebody with write access (and, for what a
signature would stop, with the signing key) would.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import ModelProto, TensorProto, numpy_helper

from benchmarks.release_load import OFFSETS
from drl_assets.learning.export.onnx_export import OPSET, export, golden
from drl_assets.learning.learners.networks import PosteriorQNetwork
from drl_core.files import write_atomically
from drl_core.release.manifest import Golden, Manifest, sign_manifest
from drl_core.release.signing_keys import key_id, signing_key
from drl_core.release.store import ModelStore


def network() -> PosteriorQNetwork:
    """A network of the default learner's size, 4 x [64, 64], with weights of no meaning."""
    torch.manual_seed(0)
    made = PosteriorQNetwork()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


class Publisher:
    """Publishes variants of one model to a store, and hostile ones past it."""

    def __init__(self, home: Path) -> None:
        made = network()
        self.store = ModelStore(home / "models")
        self.key = signing_key(home / "keys")
        self.graph, self._golden = export(made), golden(made)
        self.old = b""

    def model(self, number: int) -> bytes:
        """The graph of a variant."""
        model = onnx.load_from_string(self.graph)
        last = next(node for node in model.graph.node if "q_values" in node.output)
        last.output[0] = "before_offset"
        bias = np.full(5, number % OFFSETS, dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, "offset"))
        add = onnx.helper.make_node("Add", ["before_offset", "offset"], ["q_values"])
        model.graph.node.append(add)
        content: bytes = model.SerializeToString()
        return content

    def manifest(self, number: int) -> Manifest:
        """The manifest of a variant."""
        q_values = (np.array(self._golden.q_values) + number % OFFSETS).tolist()
        fields = dict.fromkeys(Manifest.__struct_fields__, 0) | {
            "model_version": f"v{number}",
            "training_date": dt.datetime.now(dt.UTC).isoformat(),
            "final_average_reward": None,
            "final_loss": None,
            "input_dim": 30,
            "output_dim": 5,
            "hidden_layers": [64, 64],
            "sequence": 1,
            "sha256": "0" * 64,
            "blob": "",
            "features_version": 1,
            "opset": OPSET,
            "preset": "default",
            "hyperparameters": {},
            "checkpoint_sha256": "0" * 64,
            "parent_version": None,
            "dagster_run_id": None,
            "batch_partitions": [],
            "git_commit": None,
            "evaluation": {},
            "rollback_of": None,
            "staged": False,
            "golden": msgspec.to_builtins(
                Golden(windows=self._golden.windows, carry=self._golden.carry, q_values=q_values)
            ),
        }
        return msgspec.convert(fields, Manifest)

    def publish(self, number: int) -> int:
        """Release a variant; its sequence comes back."""
        return self.store.publish(self.model(number), self.manifest(number), self.key).sequence

    def put(self, content: bytes) -> None:
        """Point every worker to a release file."""
        write_atomically(self.store.current_path, content)

    def forge(
        self, number: int, change: Callable[[ModelProto], None], key: Ed25519PrivateKey
    ) -> bytes:
        """A release of a changed graph with the next number; its blob lies in the store."""
        model = onnx.load_from_string(self.model(number))
        change(model)
        content = model.SerializeToString()
        digest = hashlib.sha256(content).hexdigest()
        (self.store.root / "blobs" / f"{digest}.onnx").write_bytes(content)
        manifest = msgspec.structs.replace(
            self.manifest(number),
            sequence=int(self.store.releases()[-1].stem) + 1,
            sha256=digest,
            blob=f"blobs/{digest}.onnx",
            size_bytes=len(content),
        )
        return sign_manifest(manifest, key)


def _nothing(model: ModelProto) -> None:
    """Leave the graph as it is."""


def _foreign_operator(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def _external_data(model: ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../keys/signing.pem")


def _nan_weights(model: ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def _wrong_shapes(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def wrong_signature(publisher: Publisher, number: int) -> None:
    """Signed by a foreign key under the name of the trusted one."""
    foreign = json.loads(publisher.forge(number, _nothing, Ed25519PrivateKey.generate()))
    trusted = key_id(publisher.key.public_key())
    publisher.put(msgspec.json.encode(foreign | {"key_id": trusted}))


def truncated(publisher: Publisher, number: int) -> None:
    """Half a release file."""
    content = publisher.forge(number, _nothing, publisher.key)
    publisher.put(content[: len(content) // 2])


def replayed(publisher: Publisher, number: int) -> None:
    """The release before the current one, as it was signed."""
    publisher.put(publisher.old)


def wrong_hash(publisher: Publisher, number: int) -> None:
    """A sound release whose blob is another model."""
    content = publisher.forge(number, _nothing, publisher.key)
    blob = json.loads(content)["manifest"]["blob"]
    (publisher.store.root / blob).write_bytes(publisher.model(number + 1))
    publisher.put(content)


def _forged(change: Callable[[ModelProto], None]) -> Callable[[Publisher, int], None]:
    def hostile(publisher: Publisher, number: int) -> None:
        publisher.put(publisher.forge(number, change, publisher.key))

    return hostile


HOSTILE: dict[str, tuple[Callable[[Publisher, int], None], str]] = {
    "wrong signature": (wrong_signature, "signature"),
    "truncated": (truncated, "format"),
    "replayed old sequence": (replayed, "sequence"),
    "wrong hash": (wrong_hash, "checksum"),
    "foreign operator": (_forged(_foreign_operator), "operator"),
    "external data": (_forged(_external_data), "external_data"),
    "NaN weights": (_forged(_nan_weights), "weights_not_finite"),
    "wrong shapes": (_forged(_wrong_shapes), "shape"),
}
"""How a release is hostile, and the name of its refusal."""
