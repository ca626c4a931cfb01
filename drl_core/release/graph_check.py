"""ONNX graph allow-list: operators, shapes and weights are checked before a graph is loaded.

ONNX bytes go in; their opset, or a `BundleError` with a stable reason, comes out. The publisher
checks its own export and the service every release, so what one makes the other accepts. It reads
the format by a small part of its schema (`protos/graph.proto`): importing `onnx` costs 11 MB.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from drl_core.protos.graph_pb2 import Attribute, Graph, Model, Node, Tensor, Value
from drl_core.release.errors import BundleError
from drl_core.release.manifest import INPUTS, MAX_BLOB_BYTES, OUTPUTS

OPSETS = range(18, 24)
MAX_NODES = 512
OPERATORS = frozenset(
    (
        *("Add", "Cast", "Clip", "Concat", "Div", "Expand", "Gather", "Gemm", "Identity", "IsNaN"),
        *("Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Pad", "ReduceMean", "ReduceSum"),
        *("Relu", "Reshape", "Shape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh"),
        *("Transpose", "Unsqueeze", "Where"),
    )
)
"""All are pure arithmetic or layout: no control flow, no files, no randomness, no state."""

_FLOAT, _INT32, _INT64, _BOOL, _DOUBLE = 1, 6, 7, 9, 11  # onnx.TensorProto.DataType
_DTYPES = {_FLOAT: "<f4", _INT32: "<i4", _INT64: "<i8", _BOOL: "|b1", _DOUBLE: "<f8"}
_SINGLE = {"q_values", "features"}  # the rest are doubles


def check(content: bytes) -> int:
    """Check a graph against the allow-list.

    Returns:
        Its opset.

    Raises:
        BundleError: `graph` (not one), `size`, `unknown_field`, `metadata`, `training`, `function`,
            `opset`, `operator`, `attribute`, `subgraph`, `sparse`, `external_data`, `tensor`,
            `weights_not_finite` or `shape`.
    """
    if len(content) > MAX_BLOB_BYTES:
        raise BundleError("size", f"the graph has {len(content)} bytes, at most {MAX_BLOB_BYTES}")
    model = _parse(content)
    _none("function", model.functions)
    _none("training", model.training_info)
    _none("metadata", model.metadata_props)
    sets = [(known.domain, known.version) for known in model.opset_import]
    if len(sets) != 1 or sets[0][0] or sets[0][1] not in OPSETS:
        raise BundleError(
            "opset", f"{sets}: exactly one, of ONNX itself, {OPSETS[0]} to {OPSETS[-1]}, expected"
        )
    graph = model.graph
    if not 0 < len(graph.node) <= MAX_NODES:
        raise BundleError("size", f"the graph has {len(graph.node)} nodes, 1 to {MAX_NODES}")
    _none("sparse", graph.sparse_initializer)
    for tensor in graph.initializer:
        _check_tensor(tensor)
    for node in graph.node:
        _check_node(node)
    _check_ends(graph)
    return int(sets[0][1])


def _parse(content: bytes) -> Model:
    model = Model()
    try:
        model.ParseFromString(content)
    except DecodeError as cause:
        raise BundleError("graph", f"not an ONNX graph: {cause}") from None
    model.DiscardUnknownFields()
    if model.ByteSize() != len(content):  # twice given fields are caught too: parsers differ there
        raise BundleError("unknown_field", "the graph has fields that a served graph may not have")
    return model


def _check_node(node: Node) -> None:
    if node.domain or node.overload or node.op_type not in OPERATORS:
        name = f"{node.domain or 'onnx'}::{node.op_type}"
        raise BundleError("operator", f"{name!r} is not an allowed operator")
    for attribute in node.attribute:
        _check_attribute(attribute, node.op_type)


def _check_attribute(attribute: Attribute, operator: str) -> None:
    if attribute.HasField("g") or attribute.graphs:
        raise BundleError("subgraph", f"{operator} has a subgraph")
    if attribute.ref_attr_name:
        raise BundleError("function", f"{operator} refers to a function's attribute")
    if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
        raise BundleError("sparse", f"{operator} has a sparse tensor")
    if attribute.HasField("t") or attribute.tensors:
        raise BundleError("attribute", f"{operator} has a tensor: weights must be initializers")


def _check_tensor(tensor: Tensor) -> None:
    """Check a weight: known type, data inside, of the declared size, every number finite."""
    name = tensor.name
    if tensor.external_data or tensor.data_location:
        raise BundleError("external_data", f"{name!r} keeps its data in another file")
    kind = _DTYPES.get(tensor.data_type)
    if kind is None or tensor.HasField("segment") or tensor.string_data:
        raise BundleError("tensor", f"{name!r} is of type {tensor.data_type}")
    if any(size < 0 for size in tensor.dims):
        raise BundleError("tensor", f"{name!r} has the dimensions {list(tensor.dims)}")
    values = _values(tensor, kind)
    if values.size != math.prod(tensor.dims):
        raise BundleError(
            "tensor", f"{name!r} has {values.size} values for dimensions {list(tensor.dims)}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BundleError("weights_not_finite", f"{name!r} has a number that is not finite")


def _values(tensor: Tensor, kind: str) -> npt.NDArray[Any]:
    typed = {
        _FLOAT: tensor.float_data,
        _INT32: tensor.int32_data,
        _BOOL: tensor.int32_data,
        _INT64: tensor.int64_data,
        _DOUBLE: tensor.double_data,
    }
    filled = [code for code, data in typed.items() if data]
    if tensor.HasField("raw_data"):
        if filled or len(tensor.raw_data) % np.dtype(kind).itemsize:
            raise BundleError(
                "tensor", f"{tensor.name!r} has data of two types, or a partial value"
            )
        return np.frombuffer(tensor.raw_data, dtype=kind)
    return np.array(typed[tensor.data_type], dtype=kind)


def _check_ends(graph: Graph) -> None:
    """Check inputs and outputs against the contract's names, types and widths."""
    for kind, expected, found in (
        ("inputs", INPUTS, graph.input),
        ("outputs", OUTPUTS, graph.output),
    ):
        names = [value.name for value in found]
        if sorted(names) != sorted(expected):
            raise BundleError("shape", f"{kind} are {names}, expected {list(expected)}")
        for value in found:
            _check_value(value, expected[value.name])


def _check_value(value: Value, width: int) -> None:
    tensor = value.type.tensor_type
    wanted = _FLOAT if value.name in _SINGLE else _DOUBLE
    batch, *rest = tensor.shape.dim or [None]
    free = batch is not None and not batch.HasField("dim_value")
    if tensor.elem_type != wanted or not free or [dim.dim_value for dim in rest] != [width]:
        sizes = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        raise BundleError(
            "shape",
            f"{value.name} has type {tensor.elem_type} {sizes}, expected {wanted} [batch, {width}]",
        )


def _none(reason: str, found: Iterable[object]) -> None:
    if any(True for _ in found):
        raise BundleError(reason, f"the graph has a {reason}, which a served graph may not have")
