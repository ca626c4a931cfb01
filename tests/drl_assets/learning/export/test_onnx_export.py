"""The exported graph: checked, reloadable, and one with torch and numpy at every batch size."""

import gzip
import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets import sources
from drl_assets.learning.export import onnx_export, release
from drl_assets.learning.learners.networks import PosteriorQNetwork, QNetwork, seeded_network
from drl_assets.tables import transforms
from drl_core.policy import features
from drl_core.release.errors import BundleError
from drl_core.release.manifest import INPUTS, OUTPUTS
from drl_core.release.signing_keys import key_id
from drl_core.release.store import ModelStore
from drl_core.telemetry.event import Event, parse_lines
from tests import strategies
from tests.drl_assets.learning.small import randomised, saved

ROOT = Path(__file__).resolve().parents[4]
REAL = Path(os.environ.get("DRL_REAL_DATA", ROOT.parent / "shared" / "data"))
RECORDED = ROOT / "samples" / "recorded"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}


@pytest.fixture(scope="module")
def network() -> QNetwork:
    return seeded_network([256, 256], 0)


@pytest.fixture(scope="module")
def graph(network: QNetwork) -> bytes:
    return onnx_export.export(network)


@pytest.fixture(scope="module")
def session(graph: bytes) -> onnxruntime.InferenceSession:
    return onnx_export.session(graph)


@pytest.fixture(scope="module")
def ensemble() -> PosteriorQNetwork:
    return randomised(PosteriorQNetwork([16, 8], 3), 1)


@pytest.fixture(scope="module")
def ensemble_session(ensemble: PosteriorQNetwork) -> onnxruntime.InferenceSession:
    return onnx_export.session(onnx_export.export(ensemble))


@pytest.mark.property(33)
def test_the_graph_passes_the_checker_and_reloads(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert onnx_export.session(graph)
    again = onnx_export.session(model.SerializeToString())
    assert [i.name for i in again.get_inputs()] == list(INPUTS)
    assert [o.name for o in again.get_outputs()] == list(OUTPUTS)
    assert str(ROOT).encode() not in graph, "a path of this machine is in the model"


@pytest.mark.property(34)
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_torch_and_onnx_runtime_agree_at_every_batch_size(
    network: QNetwork, session: onnxruntime.InferenceSession, size: int
) -> None:
    windows, carry = onnx_export.sample_windows(size, seed=size)
    q, table, after = session.run(list(OUTPUTS), {"windows": windows, "carry": carry})
    with torch.no_grad():
        path = onnx_export.DecisionPath(network)
        expected = path(torch.from_numpy(windows), torch.from_numpy(carry))
    for got, torchs in zip((q, table, after), expected, strict=True):
        assert got.dtype == torchs.numpy().dtype
        np.testing.assert_allclose(got, torchs.numpy(), atol=1e-5, rtol=1e-6)


@pytest.mark.property(34)
@pytest.mark.parametrize("size", [1, 2, 3, 16, 63, 64, 255, 1000])
def test_an_ensembles_graph_agrees_with_torch_at_every_batch_size(
    ensemble: PosteriorQNetwork, ensemble_session: onnxruntime.InferenceSession, size: int
) -> None:
    windows, carry = onnx_export.sample_windows(size, seed=size)
    q, table, _ = ensemble_session.run(list(OUTPUTS), {"windows": windows, "carry": carry})
    with torch.no_grad():
        expected = ensemble(torch.from_numpy(table)).numpy()
    assert q.shape == (size, 5)
    np.testing.assert_allclose(q, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.property(34)
def test_weights_put_into_the_kept_graph_are_those_of_the_network(
    tmp_path: Path, ensemble: PosteriorQNetwork
) -> None:
    first = onnx_export.export(ensemble, tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.read_bytes()
    other = randomised(PosteriorQNetwork([16, 8], 3), 9)
    second = onnx_export.export(other, tmp_path)
    assert kept.read_bytes() == before
    assert list(tmp_path.iterdir()) == [kept], "traced once"
    assert first != second
    for network, graph in ((ensemble, first), (other, second)):
        measured = onnx_export.parity(network, graph, count=2048)
        assert measured["q_error"] <= 1e-5
        assert measured["argmax_flips"] == 0
    assert onnx_export.parity(ensemble, second, count=256)["q_error"] > 1e-2


@pytest.mark.property(34)
def test_parity_is_measured_over_the_input_space(network: QNetwork, graph: bytes) -> None:
    measured = onnx_export.parity(network, graph, count=4096)
    assert measured["states"] == 4096
    assert measured["q_error"] <= 1e-5
    assert measured["feature_error"] <= 1e-6
    assert measured["argmax_flips"] == 0
    other = onnx_export.parity(seeded_network([256, 256], 1), graph, count=256)
    assert other["q_error"] > 1e-2
    assert other["argmax_flips"] > 0


def agree(session: onnxruntime.InferenceSession, episodes: Iterable[list[Event]]) -> int:
    """Hold numpy vectorised, numpy row by row and ONNX Runtime to 1e-6; how many events it saw."""
    frame = transforms.telemetry_frame(episodes).frame
    windows, first = transforms.windows_of(frame), transforms.episode_starts(frame)
    states, ends = features.fold(windows, first)
    starts = np.flatnonzero(first)
    lengths = np.diff(np.append(starts, len(windows)))
    stepped, served = features.start(len(starts)), features.start(len(starts))
    for step in range(int(lengths.max())):  # all episodes side by side, a window at a time
        on = np.flatnonzero(lengths > step)
        rows = starts[on] + step
        state, stepped[on] = features.step(np, windows[rows], stepped[on])
        table, served[on] = session.run(
            ["features", "carry_after"], {"windows": windows[rows], "carry": served[on]}
        )
        np.testing.assert_allclose(state, states[rows], atol=1e-6)
        np.testing.assert_allclose(table, states[rows], atol=1e-6)
    np.testing.assert_allclose(served, ends, rtol=1e-6, atol=1e-6)
    return len(windows)


@pytest.mark.property(9)
@pytest.mark.property(11)
@pytest.mark.property(13)
@settings(max_examples=100, deadline=None)
@given(events=st.lists(strategies.events(), min_size=1, max_size=4))
def test_numpy_and_the_graph_agree_on_any_event(
    session: onnxruntime.InferenceSession, events: list[Event]
) -> None:
    assert agree(session, [events]) > 0


@pytest.mark.property(13)
def test_they_agree_on_nulls_and_extremes(session: onnxruntime.InferenceSession) -> None:
    most = dict.fromkeys(strategies.COUNTS, strategies.FLOAT32_MAX)
    least = dict.fromkeys(strategies.COUNTS, 0.0)
    tiny = dict.fromkeys(strategies.COUNTS, 5e-324)
    events = [
        Event(episode_id="e", step=n, window_s=seconds, **signals)
        for n, (signals, seconds) in enumerate(
            (signals, seconds)
            for signals in (most, least, tiny, {})
            for seconds in (0.001, 1.0, 86_400.0)
        )
    ]
    assert agree(session, [events]) == 12


def _real() -> Iterator[list[Event]]:
    for path in sources.find([REAL / name for name in ("cape", "cuckoo", "iot-mtd")]):
        yield [item for item in sources.read(path) if isinstance(item, Event)]


@pytest.mark.property(13)
def test_they_agree_on_every_event_of_the_real_data(
    session: onnxruntime.InferenceSession,
) -> None:
    if not REAL.exists():
        pytest.skip(f"the real data are not here: {REAL}")
    assert agree(session, _real()) > 1000


@pytest.mark.property(13)
def test_they_agree_on_every_recorded_event(session: onnxruntime.InferenceSession) -> None:
    files = sorted(RECORDED.glob("*.jsonl.gz"))
    if not files:
        pytest.skip("no recorded sample")
    parsed = [parse_lines(gzip.decompress(path.read_bytes())) for path in files]
    assert agree(session, [events for events, _ in parsed]) > 1000


@pytest.mark.property(36)
def test_the_manifest_is_complete_and_agrees_with_the_graph(tmp_path: Path) -> None:
    network = seeded_network([24, 12], 3)
    trained = saved(network, {"n": np.zeros(2)})
    signed = release.publish(trained, tmp_path, KEY, evaluation={"episodes": 3}, commit="c0ffee")
    released = ModelStore(tmp_path).load(TRUSTED)
    manifest = released.manifest
    assert manifest == signed
    model = onnx.load_from_string(released.model)
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            value.type.tensor_type.shape.dim[1].dim_value,
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    assert shapes == {
        **{name: (double, width) for name, width in INPUTS.items()},
        "q_values": (single, manifest.output_dim),
        "features": (single, manifest.input_dim),
        "carry_after": (double, features.CARRY_WIDTH),
    }
    weights = sorted(
        tuple(sorted(t.dims))
        for t in model.graph.initializer
        if len(t.dims) == 2 and min(t.dims) > 1
    )
    widths = [manifest.input_dim, *manifest.hidden_layers, manifest.output_dim]
    layers = sorted(tuple(sorted(pair)) for pair in pairwise(widths))
    assert weights == layers
    assert [o.version for o in model.opset_import if not o.domain] == [manifest.opset]
    assert (manifest.model_version, manifest.hidden_layers) == (trained.version, [24, 12])
    assert (manifest.learning_rate, manifest.gamma, manifest.final_loss) == (1e-3, 0.99, 0.5)
    assert (manifest.evaluation, manifest.git_commit) == ({"episodes": 3}, "c0ffee")
    path = tmp_path / "checkpoints" / f"{manifest.model_version}.pt"
    assert manifest.checkpoint_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    onnx_export.check_golden(released)


@pytest.mark.property(36)
def test_a_graph_that_gives_other_answers_than_its_golden_ones_is_refused(tmp_path: Path) -> None:
    network = seeded_network([8], 0)
    path = tmp_path / "c.pt"
    trained = saved(network, {"n": np.zeros(2)})
    trained.save(path)
    about = release.manifest(trained, path, evaluation={}, run_id="run", commit=None)
    store = ModelStore(tmp_path)
    store.publish(onnx_export.export(seeded_network([8], 1)), about, KEY)
    with pytest.raises(BundleError, match="golden"):
        onnx_export.check_golden(store.load(TRUSTED))
