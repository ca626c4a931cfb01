"""ONNX export of a network with the feature fold inside the graph: what is served.

Inputs and outputs are those of `drl_core.release.store`: raw windows plus carry in, Q-values,
features and the next carry out. Any runtime that loads ONNX reproduces a decision with no port of
the table.
"""

import copy
import hashlib
import inspect
import logging
import warnings
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from drl_assets.learning.learners.networks import QFunction
from drl_core.files import write_atomically
from drl_core.policy import features
from drl_core.release import graph_check
from drl_core.release.errors import BundleError
from drl_core.release.manifest import INPUTS, OUTPUTS, Golden
from drl_core.release.store import Release

OPSET = 18


class DecisionPath(nn.Module):
    """Windows and carry -> Q-values, features and carry: the whole decision but the mask."""

    def __init__(self, network: QFunction) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: Tensor, carry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """float64 [N, 14] twice -> float32 [N, 5], float32 [N, 30], float64 [N, 14]."""
        wide, after = features.step(torch, windows, carry)
        narrow = wide.to(torch.float32)
        return self.network(narrow), narrow, after


def export(network: QFunction, cache: Path | None = None) -> bytes:
    """The ONNX graph of a network, held to onnx's checker and the services' allow-list.

    The batch size is free.

    Args:
        network: the policy's network.
        cache: a folder that keeps the traced graph. Tracing takes seconds and gives the same graph
            for every network of one shape, so the next export only puts its weights in.
    """
    kept = None if cache is None else cache / f"graph-{_graph_key(network)}.onnx"
    if kept is not None and kept.exists():
        model = onnx.load(kept)
    else:
        model = _trace(network)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, model.SerializeToString())
    _put_weights(model, network)
    onnx.checker.check_model(model, full_check=True)
    serialized: bytes = model.SerializeToString()
    graph_check.check(serialized)  # what a service would refuse is not released in the first place
    return serialized


def _graph_key(network: QFunction) -> str:
    """Names everything that the traced graph depends on but the weights."""
    sources = (inspect.getsource(features), inspect.getsource(type(network)), torch.__version__)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
    return hashlib.sha256(repr((sources, shapes, OPSET)).encode()).hexdigest()[:16]


def _put_weights(model: onnx.ModelProto, network: QFunction) -> None:
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            value = weights.pop(tensor.name).cpu().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    if weights:
        raise RuntimeError(f"the traced graph has no initializer for {sorted(weights)}")


def _trace(network: QFunction) -> onnx.ModelProto:
    """The graph of a network of this shape, with weights of no meaning."""
    twin = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]):
        for tensor in twin.state_dict().values():  # all different: the exporter merges equal ones
            nn.init.normal_(tensor)
    path = DecisionPath(twin).eval()
    example = (
        torch.zeros(2, INPUTS["windows"], dtype=torch.float64) + 1.0,
        torch.zeros(2, INPUTS["carry"], dtype=torch.float64),
    )
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # the exporter warns of its own internals, and that both inputs share the batch dimension
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch", UserWarning)
        program = torch.onnx.export(
            path,
            example,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes={name: {0: batch} for name in INPUTS},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter writes source paths of this machine here
        del node.metadata_props[:]
        node.ClearField("doc_string")
    return model


def session(model: bytes) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def sample_windows(
    count: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Windows and carries all over the input space, nulls and extremes too, [count, 14] twice."""
    rng = np.random.default_rng(seed)
    windows = np.zeros((count, features.WINDOW_WIDTH))
    windows[:, :7] = np.expm1(rng.uniform(0, 24, (count, 7))) * rng.integers(0, 2, (count, 7))
    windows[:, 7] = rng.uniform(0, 400, count)
    windows[:, 8] = np.expm1(rng.uniform(0, 12, count))
    windows[:, 9:12] = rng.integers(0, 2, (count, 3))
    windows[:, :12][rng.random((count, 12)) < 0.1] = np.nan
    windows[:, 12] = rng.uniform(0.25, 10, count)
    windows[:, 13] = rng.integers(0, 4, count)
    past = rng.integers(0, 200, count)
    carry = np.zeros((count, features.CARRY_WIDTH))
    carry[:, :12] = rng.random((count, 12)) * past[:, None]
    carry[:, 12] = past
    carry[:, 13] = past * windows[:, 12]
    return windows, carry


class Parity(dict[str, float | int | bool]):
    """How far ONNX Runtime is from torch and numpy; see `parity`."""


def parity(network: QFunction, model: bytes, count: int = 65_536, seed: int = 0) -> Parity:
    """Compare the graph with torch and with the numpy fold on states all over the input space.

    Returns:
        `states`; `q_error`: greatest |difference| of Q-values relative to max(1, |Q|);
        `feature_error` against numpy; `argmax_flips`: states on which the best action differs where
        torch's best two Q-values are further apart than 1e-5.
    """
    windows, carry = sample_windows(count, seed)
    with torch.no_grad():
        expected = (
            DecisionPath(network)
            .cpu()
            .eval()(torch.from_numpy(windows), torch.from_numpy(carry))[0]
            .numpy()
        )
    q, table, _ = session(model).run(list(OUTPUTS), {"windows": windows, "carry": carry})
    reference, _ = features.step(np, windows, carry)
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-5
    return Parity(
        states=count,
        q_error=float((np.abs(q - expected) / np.maximum(1.0, np.abs(expected))).max()),
        feature_error=float(np.abs(table - reference).max()),
        argmax_flips=int((q.argmax(1) != expected.argmax(1))[clear].sum()),
    )


def golden(network: QFunction, count: int = 16, seed: int = 1) -> Golden:
    """Inputs with torch's answers, for the manifest: a loader must reproduce them."""
    windows, carry = sample_windows(count, seed)
    with torch.no_grad():
        q = (
            DecisionPath(network)
            .cpu()
            .eval()(torch.from_numpy(windows), torch.from_numpy(carry))[0]
            .numpy()
        )
    nulls = cast(
        list[list[float | None]],
        [[None if np.isnan(x) else x for x in row] for row in windows.tolist()],
    )
    return Golden(windows=nulls, carry=carry.tolist(), q_values=q.astype(float).tolist())


def check_golden(release: Release) -> None:
    """Hold a release to the golden answers in its manifest.

    Raises:
        BundleError: `golden`, where the graph answers otherwise.
    """
    known = release.manifest.golden
    windows = np.array(known.windows, dtype=np.float64)
    carry = np.array(known.carry, dtype=np.float64)
    (q,) = session(release.model).run(["q_values"], {"windows": windows, "carry": carry})
    if not np.allclose(q, np.array(known.q_values), rtol=1e-4, atol=1e-4):
        raise BundleError("golden", "the graph does not reproduce the trained network's answers")
