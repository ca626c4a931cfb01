"""What a worker holds: the served model, the last ones, a challenger, others on demand."""

import asyncio
from typing import Any

import msgspec
import pytest

from drl_core.release import signing_keys
from drl_core.release.errors import BundleError
from drl_core.settings import Settings
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics


def holder_of(publisher: Any, **serving: Any) -> ModelHolder:
    settings: Settings = publisher.settings
    changed = msgspec.structs.replace(settings.serving, **serving)
    return ModelHolder(msgspec.structs.replace(settings, serving=changed), Metrics())


def results(holder: ModelHolder) -> set[str]:
    samples = next(iter(holder._metrics.reloads.collect())).samples
    return {s.labels["result"] for s in samples if s.name.endswith("_total") and s.value}


def versions(holder: ModelHolder) -> list[str]:
    return [model.manifest.model_version for model in holder.loaded()]


def reason(holder: ModelHolder, version: str) -> str:
    with pytest.raises(BundleError) as refused:
        asyncio.run(holder.version(version))
    return refused.value.reason


@pytest.fixture
def three(publisher: Any) -> ModelHolder:
    """A holder that took v1, v2 and v3, and keeps two."""
    holder = holder_of(publisher, keep_models=2)
    for number in (1, 2, 3):
        publisher.publish(f"v{number}", float(number))
        assert asyncio.run(holder.poll())
    return holder


def test_a_poll_beside_one_that_loads_waits_for_its_release(publisher: Any) -> None:
    publisher.publish("v1")
    holder = holder_of(publisher)

    async def two_polls() -> str | None:
        first = asyncio.create_task(holder.poll())
        await asyncio.sleep(0)  # it has seen the pointer and loads
        assert holder.current is None
        await holder.poll()
        served = holder.current and holder.current.manifest.model_version
        await first
        return served

    assert asyncio.run(two_polls()) == "v1"


@pytest.mark.property(35)
def test_a_restarted_service_takes_no_older_release(publisher: Any) -> None:
    publisher.publish("v1")
    old = publisher.store.current_path.read_bytes()
    publisher.publish("v2", 1.0)
    assert asyncio.run(holder_of(publisher).poll())
    publisher.store.current_path.write_bytes(old)
    restarted = holder_of(publisher)
    assert not asyncio.run(restarted.poll())
    assert (restarted.current, results(restarted)) == (None, {"sequence"})
    publisher.publish("v3", 3.0)
    assert asyncio.run(restarted.poll())
    again = holder_of(publisher)
    assert asyncio.run(again.poll()), "the highest one itself is taken again"


@pytest.mark.property(35)
def test_a_restarted_service_takes_no_other_release_of_the_same_number(publisher: Any) -> None:
    publisher.publish("v1")
    assert asyncio.run(holder_of(publisher).poll())
    for path in publisher.store.releases():
        path.unlink()
    publisher.publish("other", 1.0)
    restarted = holder_of(publisher)
    assert not asyncio.run(restarted.poll())
    assert results(restarted) == {"sequence"}


def test_a_damaged_memory_of_the_highest_release_takes_none(publisher: Any) -> None:
    publisher.publish("v1")
    holder = holder_of(publisher)
    assert asyncio.run(holder.poll())
    holder._highest.path.write_bytes(b"\0")
    restarted = holder_of(publisher)
    assert not asyncio.run(restarted.poll())
    assert results(restarted) == {"state"}


def test_the_last_releases_stay_loaded_and_older_ones_come_on_demand(
    three: ModelHolder, publisher: Any
) -> None:
    assert versions(three) == ["v3", "v2"]
    assert three.current is asyncio.run(three.version("v3"))
    first = asyncio.run(three.version("v1"))
    assert first.manifest.model_version == "v1"
    assert asyncio.run(three.version("v1")) is first
    assert versions(three) == ["v3", "v2", "v1"]
    for name in ("v9", "v9", "../v1"):
        assert reason(three, name) == "unknown_version"
    publisher.publish("v9", 9.0)
    assert asyncio.run(three.version("v9")).manifest.model_version == "v9"
    assert three.current is not None
    assert three.current.manifest.model_version == "v3", "asking for a version serves nothing"


def test_a_broken_version_is_refused_on_demand(three: ModelHolder, publisher: Any) -> None:
    manifest = publisher.store.find(
        "v1", signing_keys.trusted_keys(publisher.settings.keys_path)
    ).manifest
    (publisher.store.root / manifest.blob).write_bytes(b"other")
    assert reason(three, "v1") == "checksum"


def test_a_staged_challenger_is_held_beside_the_served_model(publisher: Any) -> None:
    publisher.publish("v1")
    holder = holder_of(publisher, challenger="v2")
    asyncio.run(holder.poll())
    assert holder.challenger is None
    assert results(holder) == {"loaded", "challenger_unknown_version"}
    signing = signing_keys.signing_key(publisher.settings.keys_path)
    publisher.store.stage(publisher.model(2.0), publisher.manifest("v2", 2.0), signing)
    assert not asyncio.run(holder.poll()), "the served model is as before"
    assert holder.challenger is not None
    assert holder.challenger.manifest.model_version == "v2"
    publisher.publish("v3", 3.0)
    assert asyncio.run(holder.poll()), "a staged number does not stand in the way of a release"
    holder.set_challenger(None)
    asyncio.run(holder.poll())
    assert holder.challenger is None
    holder.set_challenger("v3")
    asyncio.run(holder.poll())
    assert holder.challenger is None, "the served model is no challenger of itself"


def test_a_pointer_to_a_staged_release_is_refused(publisher: Any) -> None:
    publisher.publish("v1")
    holder = holder_of(publisher)
    asyncio.run(holder.poll())
    signing = signing_keys.signing_key(publisher.settings.keys_path)
    publisher.store.stage(publisher.model(2.0), publisher.manifest("v2", 2.0), signing)
    publisher.store.current_path.write_bytes(publisher.store.releases()[-1].read_bytes())
    assert not asyncio.run(holder.poll())
    assert results(holder) == {"loaded", "staged"}


def test_a_distrusted_key_ends_its_models_but_the_served_one_which_says_so(publisher: Any) -> None:
    folder = publisher.settings.keys_path
    holder = holder_of(publisher)
    for number in (1, 2):
        publisher.publish(f"v{number}", float(number))
        asyncio.run(holder.poll())
    old = signing_keys.key_id(signing_keys.signing_key(folder).public_key())
    new = signing_keys.rotate(folder)
    signing_keys.distrust(folder, old)
    assert not asyncio.run(holder.poll())
    assert holder.current is not None
    assert holder.distrusted
    assert versions(holder) == []
    assert reason(holder, "v1") == "unknown_key"
    publisher.publish("v3", 3.0, key=new)
    assert asyncio.run(holder.poll())
    assert not holder.distrusted
    assert versions(holder) == ["v3"]
