"""The allow-list of graphs: what export makes passes, every trick is refused by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from drl_assets.learning.export.onnx_export import export, golden
from drl_assets.learning.learners.networks import PosteriorQNetwork
from drl_core.policy.features import CARRY_WIDTH, WINDOW_WIDTH
from drl_core.release import graph_check
from drl_core.release.errors import BundleError
from drl_core.release.manifest import Golden, Manifest
from drl_core.release.store import Release
from drl_serving.models.onnx_model import ServedModel


@pytest.fixture(scope="module")
def posterior() -> tuple[bytes, Golden]:
    network = PosteriorQNetwork((64, 64), 4)
    return export(network), golden(network)


def operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "RandomUniform"


def foreign_domain(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def function(model: ModelProto) -> None:
    model.functions.add().name = "Add"


def subgraph(model: ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
    attribute.g.name = "inner"


def tensor_attribute(model: ModelProto) -> None:
    value = numpy_helper.from_array(np.zeros(3), "value")
    model.graph.node[0].attribute.append(helper.make_attribute("value", value))


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(3)


def external_data(model: ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../../etc/passwd")


def not_finite(model: ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def wrong_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40]


def text(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [1], [b"x"]))


def other_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 7


def second_opset(model: ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def configuration(model: ModelProto) -> None:
    """ONNX Runtime reads session options there."""
    model.metadata_props.add(key="ort_config", value='{"session_options": {}}')


def training(model: ModelProto) -> None:
    model.training_info.add()


def many_nodes(model: ModelProto) -> None:
    model.graph.node.extend([model.graph.node[0]] * graph_check.MAX_NODES)


def no_nodes(model: ModelProto) -> None:
    del model.graph.node[:]


def further_input(model: ModelProto) -> None:
    model.graph.input.add().CopyFrom(
        helper.make_tensor_value_info("more", TensorProto.DOUBLE, ["batch", 14])
    )


def fixed_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def sequence_input(model: ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def annotation(model: ModelProto) -> None:
    model.graph.quantization_annotation.add().tensor_name = "windows"


TRICKS: list[tuple[Callable[[ModelProto], None], str]] = [
    (operator, "operator"),
    (foreign_domain, "operator"),
    (function, "function"),
    (subgraph, "subgraph"),
    (tensor_attribute, "attribute"),
    (sparse, "sparse"),
    (external_data, "external_data"),
    (not_finite, "weights_not_finite"),
    (wrong_size, "tensor"),
    (text, "tensor"),
    (other_opset, "opset"),
    (second_opset, "opset"),
    (configuration, "metadata"),
    (training, "training"),
    (many_nodes, "size"),
    (no_nodes, "size"),
    (further_input, "shape"),
    (fixed_batch, "shape"),
    (sequence_input, "unknown_field"),
    (annotation, "unknown_field"),
]


@pytest.mark.property(33)
def test_an_exported_graph_passes(posterior: tuple[bytes, Golden]) -> None:
    assert graph_check.check(posterior[0]) == 18


@pytest.mark.property(35)
@pytest.mark.parametrize(("trick", "reason"), TRICKS, ids=[t.__name__ for t, _ in TRICKS])
def test_a_graph_with_a_trick_is_refused_by_name(
    posterior: tuple[bytes, Golden], trick: Callable[[ModelProto], None], reason: str
) -> None:
    model = onnx.load_from_string(posterior[0])
    trick(model)
    with pytest.raises(BundleError) as refused:
        graph_check.check(model.SerializeToString())
    assert refused.value.reason == reason


def test_a_field_given_twice_is_refused(posterior: tuple[bytes, Golden]) -> None:
    twice = posterior[0] + ModelProto(ir_version=10).SerializeToString()
    with pytest.raises(BundleError, match="unknown_field"):
        graph_check.check(twice)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes_are_no_graph(content: bytes) -> None:
    with pytest.raises(BundleError):
        graph_check.check(content)


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True))
def test_a_truncated_graph_is_refused(posterior: tuple[bytes, Golden], at: float) -> None:
    with pytest.raises(BundleError):
        graph_check.check(posterior[0][: int(at * len(posterior[0]))])


@pytest.mark.property(36)
def test_a_manifest_that_disagrees_with_its_graph_is_refused(publisher: Any) -> None:
    manifest: Manifest = publisher.manifest("v1", opset=17)
    with pytest.raises(BundleError, match="opset"):
        ServedModel(Release(manifest, publisher.model(), "0" * 16))


def test_a_row_has_the_same_answer_whatever_is_run_beside_it(publisher: Any) -> None:
    model = ServedModel(Release(publisher.manifest("v1"), publisher.model(), "0" * 16))
    random = np.random.default_rng(0)
    windows = np.zeros((1100, WINDOW_WIDTH))
    windows[:, :9] = random.random((1100, 9)) * 10.0 ** random.integers(0, 5, (1100, 9))
    windows[:, 12] = 1
    carry = np.zeros((1100, CARRY_WIDTH))
    for _ in range(3):
        carry = model.run(windows, carry).carry
    whole = model.run(windows, carry)
    for count in (*range(1, 40), 255, 1024, 1025):
        low = int(random.integers(0, 1101 - count))
        part = model.run(windows[low : low + count], carry[low : low + count])
        for name in ("q_values", "features", "carry"):
            expected = getattr(whole, name)[low : low + count]
            np.testing.assert_array_equal(getattr(part, name), expected, err_msg=f"{count} {name}")
