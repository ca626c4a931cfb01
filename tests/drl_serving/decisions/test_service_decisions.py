"""POST /v1/decisions: order, idempotency, atomicity, masks, and failing closed."""

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient
from onnx import TensorProto, helper

from drl_core.policy import features
from drl_core.policy.actions import ACTION_COUNT, CONTAINING, Action, allowed
from drl_core.settings import Serving, Settings
from drl_core.telemetry.event import SIGNALS, Event, validate_event
from drl_serving.app import create_app
from drl_serving.decisions.engine.action_selection import Rules, explain, mask, select
from drl_serving.decisions.engine.engine import DecisionEngine
from drl_serving.decisions.engine.requests import DecisionRequest
from drl_serving.decisions.engine.shadow import Shadow
from drl_serving.decisions.state.episode_store import EpisodeStore, database_key
from drl_serving.models.holder import ModelHolder
from drl_serving.models.onnx_model import ServedModel
from drl_serving.observability.metrics import Metrics
from drl_serving.storage.shared_state import SharedState

Client = TestClient[Litestar]
MANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def event(step: int, episode: object = "e", **fields: Any) -> dict[str, Any]:
    return {"sandbox_id": "s", "episode_id": episode, "step": step, "syscall_count": 10, **fields}


def decide(client: Client, body: Any) -> Any:
    return client.post("/v1/decisions", json=body)


def test_a_single_event_gets_one_whole_decision(client: Client) -> None:
    answer = decide(client, event(0))
    assert answer.status_code == 200
    decision = answer.json()
    assert decision["model_version"] == "v1"
    assert decision["sequence"] == 1
    assert decision["mode"] == "observe"
    assert decision["features_version"] == features.FEATURES_VERSION
    assert decision["action_name"] == Action(decision["action"]).label
    assert decision["q_values"][decision["action"]] == max(decision["q_values"])
    assert 1 / ACTION_COUNT <= decision["confidence"] <= 1
    assert decision["reason"].startswith(decision["action_name"])


def test_one_by_one_and_as_a_list_give_the_same_q_values(client: Client) -> None:
    steps = [{"syscall_count": 10.0**n, "bytes_sent": None if n % 2 else 5.0} for n in range(6)]
    singly = [decide(client, event(n, "a", **f)).json() for n, f in enumerate(steps)]
    listed = decide(client, [event(n, "b", **f) for n, f in enumerate(steps)]).json()
    for one, other in zip(singly, listed, strict=True):
        np.testing.assert_allclose(one["q_values"], other["q_values"], atol=1e-5)


@pytest.mark.property(5)
def test_a_redelivered_step_gets_the_same_decision(client: Client) -> None:
    first = decide(client, event(0)).json()
    assert decide(client, event(0, syscall_count=99)).json() == first
    second, again, third = decide(client, [event(1), event(1), event(2)]).json()
    assert again == second
    assert decide(client, [event(2), event(2)]).json() == [third, third]
    kept = 'drl_decisions_total{action="'
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(kept)]
    assert sum(float(line.split()[-1]) for line in lines) == 3


@pytest.mark.property(6)
def test_steps_out_of_order_are_told_what_to_send(client: Client) -> None:
    unknown = decide(client, event(3))
    assert unknown.status_code == 409
    assert unknown.json()["type"] == "urn:drl:problem:unknown-episode"
    assert "from step 0" in unknown.json()["next"]
    decide(client, [event(0), event(1)])
    gap = decide(client, event(5))
    assert gap.status_code == 409
    assert (gap.json()["missing_from"], gap.json()["missing_to"]) == (2, 4)
    old = decide(client, event(0))
    assert (old.status_code, old.json()["type"]) == (409, "urn:drl:problem:old-step")
    assert old.headers["content-type"] == "application/problem+json"


@pytest.mark.property(8)
def test_mixed_episodes_do_not_touch_each_other(client: Client) -> None:
    alone = decide(client, [event(n, "alone", syscall_count=50) for n in range(3)]).json()
    mixed = [
        event(n, name, syscall_count=size)
        for n in range(3)
        for name, size in (("x", 50), ("y", 9e5))
    ]
    answers = decide(client, mixed).json()
    assert [a["episode_id"] for a in answers] == ["x", "y"] * 3
    for one, other in zip(alone, answers[::2], strict=True):
        np.testing.assert_allclose(one["q_values"], other["q_values"], atol=1e-5)


@pytest.mark.parametrize(
    "bad", [event(-1), event(2, cpu_usage="much"), event(9), {"step": 2}, 7, None, []]
)
def test_a_list_that_fails_anywhere_changes_nothing(client: Client, bad: Any) -> None:
    last = decide(client, event(0)).json()
    refused = decide(client, [event(1), event(0, "new"), bad])
    assert refused.status_code in (400, 409)
    assert refused.json()["record"] == 2
    assert refused.json()["field"]
    assert decide(client, event(0)).json() == last  # step 0 is still the last one
    assert client.get("/health/ready").json()["episodes"] == 1


def test_an_evicted_episode_is_never_decided_from_part_of_its_history(publisher: Any) -> None:
    publisher.publish("v1")
    narrow = Settings(home=publisher.settings.home, serving=Serving(max_episodes=2))
    with TestClient(create_app(narrow)) as client:
        for name in ("a", "b"):
            assert decide(client, event(0, name)).status_code == 200
        assert decide(client, event(1, "a")).status_code == 200
        assert decide(client, event(0, "c")).status_code == 200  # evicts b, used least recently
        assert decide(client, event(1, "b")).status_code == 409
        assert decide(client, event(2, "a")).status_code == 200
        assert decide(client, [event(n, "b") for n in range(3)]).status_code == 200
        assert client.get("/health/ready").json()["episodes"] == 2


requests = st.lists(  # which episode goes on by how many steps, and how many of the last it repeats
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.property(5)
@pytest.mark.property(8)
@pytest.mark.property(12)
@MANY
@given(sent=requests)
def test_however_events_are_split_and_repeated_the_scores_are_those_of_the_fold(
    holder: ModelHolder, sent: list[list[tuple[str, int, bool]]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = SharedState(Path(folder), 10)
        store = EpisodeStore(state, 10, 3600)
        metrics = Metrics()
        shadow = Shadow(metrics.compared, metrics.shadow_skipped.inc)
        follow_the_fold(DecisionEngine(store, holder, Rules(), metrics, shadow), sent)
        state.close()


def follow_the_fold(engine: DecisionEngine, sent: list[list[tuple[str, int, bool]]]) -> None:
    history: dict[str, list[Event]] = {name: [] for name in "abc"}
    first: dict[tuple[str, str, int], str] = {}
    for request in sent:
        events: list[Event] = []
        for name, steps, again in request:
            if again and history[name]:
                events.append(history[name][-1])
            for _ in range(steps):
                step = len(history[name])
                fields = {"cpu_usage": step * 7 % 100, "bytes_sent": step * 1e3 or None}
                history[name].append(validate_event({"episode_id": name, "step": step, **fields}))
                events.append(history[name][-1])
        decided = engine.decide_now(DecisionRequest(events))
        for one, answer in zip(events, decided.answers, strict=True):
            assert (answer.episode_id, answer.step) == one.key[1:]
            assert first.setdefault(one.key, answer.decision_id) == answer.decision_id
        new = [step.decision for step in decided.scored.values()]
        assert len({decision.decision_id for decision in new}) == len(new)
    for name, events in history.items():
        if events:
            rows = np.stack([features.window(e) for e in events])
            _, carry = features.fold(rows, np.arange(len(rows)) == 0)
            key = database_key(("default", name))
            kept = engine.episodes.read([key])[key]
            assert kept is not None
            assert kept.episode.step == len(events) - 1
            np.testing.assert_allclose(kept.episode.carry(), carry[0], rtol=1e-9, atol=1e-9)
    assert len(first) == sum(map(len, history.values()))


def choose(
    q_values: list[float], isolation_level: int, margin: float = 0.0
) -> tuple[Action, float, str]:
    """Select one row's action and explain it."""
    values = mask(q_values, isolation_level)
    action = select(values, margin)
    return Action(action), *explain(action, values, isolation_level, margin)


def test_no_more_isolation_at_level_three() -> None:
    q_values = [0.0, 9.0, 1.0, 2.0, 3.0]
    assert choose(q_values, 2)[0] is Action.INCREASE_ISOLATION
    action, confidence, reason = choose(q_values, 3)
    assert action is Action.REQUEST_HUMAN_REVIEW
    assert confidence == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-2) + np.exp(-3)))
    assert "1 above quarantine_file" in reason
    assert "increase_isolation" in reason


@MANY
@given(
    q_values=st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5),
    level=st.integers(0, 3),
    margin=st.floats(0, 5),
)
def test_containing_takes_the_margin(q_values: list[float], level: int, margin: float) -> None:
    action, confidence, reason = choose(q_values, level, margin)
    allowed_now = allowed(level)
    assert allowed_now[action]
    assert 0 < confidence <= 1
    assert action.label in reason
    others = [q for n, q in enumerate(q_values) if allowed_now[n] and n not in CONTAINING]
    if action in CONTAINING:
        assert q_values[action] - max(others) >= margin
    elif margin == 0:
        assert q_values[action] == max(q for n, q in enumerate(q_values) if allowed_now[n])


def test_without_a_model_nothing_is_decided(publisher: Any) -> None:
    with TestClient(create_app(publisher.settings)) as client:
        answer = decide(client, event(0))
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["type"] == "urn:drl:problem:no-model"
        assert client.get("/health/ready").status_code == 503
        assert client.get("/v1/models/current").status_code == 503
        assert client.get("/health/live").status_code == 200


def test_wrong_content_type_and_size_are_refused(publisher: Any) -> None:
    publisher.publish("v1")
    small = Serving(max_body_bytes=2000, max_batch=3)
    with TestClient(create_app(Settings(home=publisher.settings.home, serving=small))) as client:
        assert client.post("/v1/decisions", content=b"{}").status_code == 415
        text = {"Content-Type": "text/plain"}
        assert client.post("/v1/decisions", content=b"{}", headers=text).status_code == 415
        assert decide(client, [event(n) for n in range(4)]).status_code == 413
        large = decide(client, event(0, extra={"a" * 100 + str(n): 1 for n in range(30)}))
        assert large.status_code == 413
        assert large.headers["content-type"] == "application/problem+json"
        assert decide(client, event(0)).status_code == 200


def check_closed(client: Client, body: bytes) -> None:
    """Anything but a valid event is answered by a client error that names a field."""
    answer = client.post(
        "/v1/decisions", content=body, headers={"Content-Type": "application/json"}
    )
    if answer.status_code == 200:
        decisions = answer.json() if body.lstrip()[:1] == b"[" else [answer.json()]
        assert all(np.isfinite(d["q_values"]).all() for d in decisions)
        assert all(d["q_values"][1] is not None for d in decisions)
        return
    assert answer.status_code in (400, 409, 413), answer.text
    problem = answer.json()
    assert "action" not in problem
    assert problem["field"]
    assert problem["next"]


@pytest.mark.property(3)
@MANY
@given(body=st.binary(max_size=400))
def test_arbitrary_bytes_never_fail_and_never_decide(client: Client, body: bytes) -> None:
    check_closed(client, body)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
fields = st.sampled_from(Event.__struct_fields__)


@pytest.mark.property(3)
@MANY
@given(changes=st.dictionaries(fields, values, max_size=3), listed=st.booleans(), raw=st.data())
def test_events_with_arbitrary_fields_never_fail(
    client: Client, changes: dict[str, Any], listed: bool, raw: st.DataObject
) -> None:
    text = json.dumps([{**event(0), **changes}] if listed else {**event(0), **changes})
    check_closed(client, text.encode("utf-8", "surrogatepass"))
    cut = raw.draw(st.integers(0, len(text)))
    check_closed(client, text[:cut].encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("number", ["1e39", "1e400", "-1", "NaN", "Infinity", '"7"', "true"])
def test_a_number_that_is_no_count_is_named_and_never_decided(client: Client, number: str) -> None:
    body = f'{{"episode_id": 1, "step": 0, "bytes_sent": {number}}}'.encode()
    answer = client.post(
        "/v1/decisions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["field"] in ("bytes_sent", "$")


signal = st.none() | st.floats(0, 3.4e38)
windows = st.fixed_dictionaries(
    {
        **dict.fromkeys(SIGNALS[:9], signal),
        **{name: st.none() | st.booleans() for name in SIGNALS[9:]},
        "window_s": st.floats(0.001, 86400),
        "isolation_level": st.integers(0, 3),
        "is_malicious": st.none() | st.booleans(),
    }
)


@pytest.fixture
def holder(publisher: Any) -> ModelHolder:
    publisher.publish("v1")
    holder = ModelHolder(publisher.settings, Metrics())
    asyncio.run(holder.poll())
    return holder


@pytest.fixture
def model(holder: ModelHolder) -> ServedModel:
    assert holder.current is not None
    return holder.current


@pytest.mark.property(9)
@pytest.mark.property(10)
@pytest.mark.property(11)
@pytest.mark.property(13)
@MANY
@given(episode=st.lists(windows, min_size=1, max_size=12))
def test_the_served_graph_and_the_fold_agree(
    model: ServedModel, episode: list[dict[str, Any]]
) -> None:
    events = [validate_event({"episode_id": 1, "step": n, **f}) for n, f in enumerate(episode)]
    rows = np.stack([features.window(e) for e in events])
    first = np.arange(len(rows)) == 0
    expected, carry_after = features.fold(rows, first)
    carry = features.start()
    for n, row in enumerate(rows):
        scores = model.run(row[None], carry)
        carry = scores.carry
        assert scores.features.shape == (1, features.FEATURE_COUNT)
        assert ((scores.features >= 0) & (scores.features <= 1)).all()
        np.testing.assert_allclose(scores.features[0], expected[n], atol=1e-6)
        measured = sum(getattr(events[n], name) is not None for name in SIGNALS) / len(SIGNALS)
        assert scores.features[0, 28] == pytest.approx(measured)
    np.testing.assert_allclose(carry, carry_after, rtol=1e-9, atol=1e-9)


def test_a_model_that_is_not_finite_is_a_problem_and_no_action(publisher: Any) -> None:
    """A graph that was sound on its golden rows and is not on another one."""
    model, version = publisher.model(), "nan"
    graph = onnx.load_from_string(model)
    output = next(node for node in graph.graph.node if "q_values" in node.output)
    output.output[0] = "finite_q"
    graph.graph.initializer.append(helper.make_tensor("most", TensorProto.DOUBLE, [], [1e3]))
    graph.graph.initializer.append(helper.make_tensor("col", TensorProto.INT64, [1], [12]))
    graph.graph.initializer.append(helper.make_tensor("large", TensorProto.FLOAT, [], [3e38]))
    graph.graph.node.extend(
        [
            helper.make_node("Gather", ["windows", "col"], ["seconds"], axis=1),
            helper.make_node("Div", ["seconds", "most"], ["above"]),  # 86 overflows, 0.01 does not
            helper.make_node("Cast", ["above"], ["share"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["share", "large"], ["huge"]),
            helper.make_node("Sub", ["huge", "huge"], ["nothing"]),
            helper.make_node("Add", ["finite_q", "nothing"], ["q_values"]),
        ]
    )
    publisher.publish(version, model=graph.SerializeToString())
    with TestClient(create_app(publisher.settings), raise_server_exceptions=False) as client:
        assert decide(client, event(0)).status_code == 200
        answer = decide(client, event(1, window_s=86400))
        assert answer.status_code == 500
        assert answer.json()["type"] == "urn:drl:problem:model-not-finite"
        assert "action" not in answer.json()
        assert decide(client, event(1)).status_code == 200  # nothing was kept of the failure


def test_ten_thousand_events_are_one_request(client: Client) -> None:
    body = [event(step, episode) for step in range(10) for episode in range(1000)]
    began = time.perf_counter()
    answer = decide(client, body)
    print(f"10,000 events of 1,000 episodes: {time.perf_counter() - began:.2f} s")
    assert answer.status_code == 200
    assert len(answer.json()) == 10_000
