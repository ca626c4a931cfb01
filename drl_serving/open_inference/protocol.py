"""Codec of the Open Inference Protocol: JSON, and tensors as binary data behind it.

A body comes in and leaves as two float64 tables and what was asked for; scores come in and leave as
a body. Whatever a client sent that is not exactly what the model takes is refused by name.
"""

import math
import zlib
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from drl_core.policy.features import Array
from drl_core.release.manifest import INPUTS, OUTPUTS
from drl_serving.http.problems import Problem
from drl_serving.models.onnx_model import Scores, ServedModel
from drl_serving.open_inference.service import DATATYPES, NAME

_NEXT = "Fix the request and send it again; GET /v2/models/drl-policy describes what it takes."
_REFUSED = ("sequence_id", "shared_memory_region", "classification")
_WBITS = {"gzip": 31, "deflate": 15}


class InputTensor(Struct, frozen=True):
    """One input as the JSON part has it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = field(default_factory=dict)
    data: msgspec.Raw = field(default_factory=msgspec.Raw)


class RequestedOutput(Struct, frozen=True):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


class InferRequest(Struct, frozen=True):
    """The JSON part of a request."""

    inputs: list[InputTensor]
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[RequestedOutput] = field(default_factory=list)


class ParsedRequest(Struct, frozen=True):
    """A request, understood."""

    id: str
    inputs: dict[str, Array]
    outputs: dict[str, bool]
    """ParsedRequest outputs, and whether as binary data."""


_decoder = msgspec.json.Decoder(InferRequest)
_data = msgspec.json.Decoder(list[float | list[float | None] | None])


def refuse(message: str, field_name: str | None = None) -> Problem:
    """A 400 for a request that is not of the protocol."""
    return Problem(400, "invalid-inference", message, _NEXT, field=field_name)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A body without its content encoding.

    Raises:
        Problem: 400 damaged, 413 more than `limit` bytes, 415 another encoding.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in _WBITS:
        raise Problem(
            415, "unsupported-encoding", f"the content encoding {encoding!r} is not known", _NEXT
        )
    inflater = zlib.decompressobj(_WBITS[encoding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as cause:
        raise refuse(f"the body is not {encoding}: {cause}") from None
    if len(plain) > limit:
        raise Problem(413, "body-too-large", f"the body inflates beyond {limit} bytes", _NEXT)
    if not inflater.eof or inflater.unused_data:
        raise refuse(f"the body is not one whole {encoding} stream")
    return plain


def parse(body: bytes, json_bytes: str | None) -> ParsedRequest:
    """Understand a request.

    Args:
        body: JSON, then binary data.
        json_bytes: the header `Inference-Header-Content-Length`; None where all is JSON.

    Raises:
        Problem: 400, naming the tensor.
    """
    length = _length(json_bytes, len(body))
    try:
        request = _decoder.decode(memoryview(body)[:length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise refuse(f"the JSON part: {cause}") from None
    require_supported(request.parameters)
    inputs: dict[str, Array] = {}
    at = length
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise refuse(f"the input {tensor.name!r} is given twice", tensor.name)
        inputs[tensor.name], at = _table(tensor, body, at)
    if at != len(body):
        raise refuse(f"{len(body) - at} bytes of binary data belong to no input")
    return ParsedRequest(request.id, complete(inputs), _outputs(request))


def complete(inputs: dict[str, Array]) -> dict[str, Array]:
    """The inputs, both of which must be there.

    Raises:
        Problem: 400.
    """
    for name in INPUTS:
        if name not in inputs:
            raise refuse(f"the input {name!r} is missing", name)
    return inputs


def require_input(name: str, datatype: str, shape: list[int]) -> int:
    """Hold an input's description to the model's; its number of values comes back.

    Raises:
        Problem: 400.
    """
    width = INPUTS.get(name)
    if width is None:
        raise refuse(f"there is no input {name!r}", name)
    if datatype != "FP64" or len(shape) != 2 or shape[1] != width or not 0 < shape[0] <= 1 << 24:
        raise refuse(f"{name} is {datatype} {shape}, expected FP64 [-1, {width}]", name)
    return math.prod(shape)


def require_output(name: str) -> str:
    """An output's name.

    Raises:
        Problem: 400.
    """
    if name not in OUTPUTS:
        raise refuse(f"there is no output {name!r}", name)
    return name


def require_supported(parameters: dict[str, Any]) -> None:
    """Refuse what would change an answer's meaning.

    Raises:
        Problem: 400.
    """
    for name in _REFUSED:
        if parameters.get(name):
            raise refuse(f"the parameter {name!r} is not supported", name)


def doubles(values: Any) -> bytes:
    """Numbers as little-endian doubles."""
    return np.fromiter(values, dtype="<f8", count=len(values)).tobytes()


def table(raw: bytes | memoryview, shape: list[int], at: int = 0) -> Array:
    """Little-endian doubles as a table, without a copy where they lie well."""
    values = np.frombuffer(raw, dtype="<f8", count=math.prod(shape), offset=at).reshape(shape)
    return np.require(values, requirements="A")


def tables(scores: Scores) -> dict[str, np.ndarray[Any, Any]]:
    """Scores by the names of the model's outputs."""
    return {
        "q_values": scores.q_values,
        "features": scores.features,
        "carry_after": scores.carry,
    }


def encode(asked: ParsedRequest, model: ServedModel, scores: Scores) -> tuple[bytes, int | None]:
    """The answer's body and, where it has binary data, the length of its JSON part."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    found = tables(scores)
    for name, as_binary in asked.outputs.items():
        values = found[name]
        about: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[name],
            "shape": list(values.shape),
        }
        if as_binary:
            binary.append(values.tobytes())
            about["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            about["data"] = values.ravel().tolist()
        outputs.append(about)
    answer = {
        "model_name": NAME,
        "model_version": model.manifest.model_version,
        **({"id": asked.id} if asked.id else {}),
        "outputs": outputs,
    }
    text = msgspec.json.encode(answer)
    return (b"".join([text, *binary]), len(text)) if binary else (text, None)


def _length(json_bytes: str | None, body: int) -> int:
    if json_bytes is None:
        return body
    if not (json_bytes.isascii() and json_bytes.isdigit()) or int(json_bytes[:20]) > body:
        raise refuse(
            f"Inference-Header-Content-Length is {json_bytes[:20]!r}, the body has {body} bytes",
            "Inference-Header-Content-Length",
        )
    return int(json_bytes)


def _table(tensor: InputTensor, body: bytes, at: int) -> tuple[Array, int]:
    """An input's values, and where the next one's binary data begin."""
    count = require_input(tensor.name, tensor.datatype, tensor.shape)
    require_supported(tensor.parameters)
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return _from_json(tensor, count), at
    if bytes(tensor.data) or size != count * 8 or at + count * 8 > len(body):
        raise refuse(
            f"{tensor.name}: {count * 8} bytes of binary data are expected, "
            f"{size!r} announced, {len(body) - at} there",
            tensor.name,
        )
    return table(body, tensor.shape, at), at + count * 8


def _from_json(tensor: InputTensor, count: int) -> Array:
    try:
        values = _data.decode(tensor.data)
        flat = np.array(values, dtype=np.float64)  # null, not measured, becomes NaN
    except (msgspec.MsgspecError, ValueError, TypeError) as cause:
        raise refuse(f"{tensor.name}: {cause}", tensor.name) from None
    if flat.size != count or (flat.ndim == 2 and list(flat.shape) != tensor.shape):
        raise refuse(f"{tensor.name} has {list(flat.shape)} values for {tensor.shape}", tensor.name)
    return flat.reshape(tensor.shape)


def _outputs(request: InferRequest) -> dict[str, bool]:
    default = request.parameters.get("binary_data_output", False)
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, default is True)
    asked: dict[str, bool] = {}
    for output in request.outputs:
        require_supported(output.parameters)
        asked[require_output(output.name)] = output.parameters.get("binary_data", default) is True
    return asked
