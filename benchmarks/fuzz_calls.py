"""`python -m benchmarks.fuzz_calls TARGET N SEED KEY`: N malformed calls over gRPC, judged.

A part of `benchmarks.fuzz`; what was found is printed as JSON.
"""

import random
import struct
import sys
import time
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import service_pb2 as pb  # ours are in the same package: one of them
from tritonclient.grpc import service_pb2_grpc as stubs

from benchmarks.fuzz import MODEL, Found, row


def run(target: str, count: int, seed: int, key: str | None) -> Found:
    """Malformed calls of `ModelInfer` over gRPC; arguments as those of `fuzz.run`."""
    metadata = (("authorization", f"Bearer {key}"),) if key is not None else ()
    chance, found, began = random.Random(seed), Found(), time.monotonic()
    with grpc.insecure_channel(target) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while found.sent < count:
            found.sent += 1
            message = _call(chance)
            try:
                if chance.random() < 0.5:
                    content = bytearray(message.SerializeToString())
                    for _ in range(chance.randint(1, 5)):
                        content[chance.randrange(len(content))] = chance.randrange(256)
                    cut = chance.choice((None, chance.randrange(len(content))))
                    raw(bytes(content[:cut]), metadata=metadata)
                else:
                    stub.ModelInfer(message, metadata=metadata)
            except grpc.RpcError as error:
                code = error.code()
                found.statuses[code.name] += 1
                if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE):
                    found.server_errors.append(f"{error} {message}"[:1500])
            else:
                found.statuses["OK"] += 1
    found.seconds = time.monotonic() - began
    return found


def _call(chance: random.Random) -> Any:
    message = pb.ModelInferRequest(model_name=MODEL)
    for name in ("windows", "carry"):
        shape = [chance.choice((0, 1, 1, 1, 2, -1, 2**62)), chance.choice((14, 14, 14, 0, 13, -1))]
        tensor = message.inputs.add(
            name=name, datatype=chance.choice(("FP64", "FP64", "BYTES", "", "FP32"))
        )
        tensor.shape.extend(shape)
        values = [*row(chance)] if name == "windows" else [0.0] * 14
        if chance.random() < 0.5:
            values[chance.randrange(14)] = chance.choice((float("nan"), 1e308, -1.0, float("inf")))
        if chance.random() < 0.5:
            tensor.contents.fp64_contents.extend(values[: chance.choice((14, 14, 0, 5))])
        else:
            message.raw_input_contents.append(
                struct.pack("<14d", *values)[: chance.choice((112, 112, 0, 7))]
            )
    if chance.random() < 0.2:
        message.outputs.add(name=chance.choice(("q_values", "none", "")))
    if chance.random() < 0.1:
        message.model_name = chance.choice(("", "none", "x" * 5000))
    return message


if __name__ == "__main__":
    target, count, seed, key = sys.argv[1:]
    sys.stdout.buffer.write(msgspec.json.encode(run(target, int(count), int(seed), key or None)))
