"""`/console/model` and `/console/shadow`: model card, rollback, comparison with the challenger."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from prometheus_client import Metric

from drl_core.policy.actions import ACTION_COUNT, Action
from drl_core.release.manifest import Manifest
from drl_serving.access.guards import requires
from drl_serving.audit.log import Audit
from drl_serving.console.charts import Chart, Value, chart
from drl_serving.console.page_context import (
    MAX_FORM_BYTES,
    Console,
    client,
    form_of,
    principal,
    problem_page,
)
from drl_serving.console.pages import words
from drl_serving.console.schemas import Evaluation, Matrix
from drl_serving.http.problems import Problem
from drl_serving.models import service
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics

RELEASES = 50
FIGURES = (
    "utility",
    "containment",
    "benign_interruption",
    "review_load",
    "containment_at_1pct",
    "time_to_containment_s",
    "damage_prevented",
)
"""Of the table of policies, as the report of an evaluation has them."""
_SHARES = ("containment", "benign_interruption", "review_load")


class ModelPages(Controller):
    """The model's card, its releases, the way back, and the comparison with the challenger."""

    path = "/console"
    include_in_schema = False
    request_max_body_size = MAX_FORM_BYTES
    exception_handlers = {Exception: problem_page}  # noqa: RUF012 - as the framework reads it

    @get("/model", operation_id="console_model")
    async def card(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        models: NamedDependency[ModelHolder],
    ) -> Response[str]:
        releases = await asyncio.to_thread(service.releases, models, RELEASES)
        current, challenger = models.current, models.challenger
        found = _evaluation(current.manifest) if current else None
        return await console.page(
            request,
            "model.html",
            manifest=current.manifest if current else None,
            key_id=current.key_id if current else None,
            trusted=not models.distrusted,
            challenger=challenger.manifest.model_version if challenger else None,
            evaluation=found,
            figures=FIGURES,
            pictures=pictures(found) if found else [],
            releases=releases,
        )

    @get("/model/rollback", operation_id="console_rollback_page", guards=[requires("publish")])
    async def ask(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        models: NamedDependency[ModelHolder],
    ) -> Response[str]:
        manifest = service.require_model(models).manifest
        return await console.page(request, "rollback.html", manifest=manifest, done=None)

    @post(
        "/model/rollback",
        operation_id="console_rollback",
        status_code=200,
        guards=[requires("publish")],
    )
    async def roll_back(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        models: NamedDependency[ModelHolder],
        audit: NamedDependency[Audit],
    ) -> Response[str]:
        form = await form_of(request)
        console.check_post(request, form)
        manifest = service.require_model(models).manifest
        if form.get("sequence") != str(manifest.sequence):
            raise Problem(
                409,
                "another-model",
                f"another model is served by now: {manifest.model_version}",
                "Look at it first; then roll back from its page, if it is that one.",
            )
        done = await service.roll_back(models)
        target = f"{done.model_version} ({done.sequence})"
        actor = principal(request).id
        audit.record("model.rollback", actor=actor, target=target, client=client(request))
        return await console.page(request, "rollback.html", manifest=manifest, done=done)

    @get("/shadow", operation_id="console_shadow")
    async def shadow(
        self,
        request: Request[Any, Any, Any],
        console: NamedDependency[Console],
        models: NamedDependency[ModelHolder],
        metrics: NamedDependency[Metrics],
    ) -> Response[str]:
        current, challenger = models.current, models.challenger
        return await console.page(
            request,
            "shadow.html",
            matrix=matrix(await asyncio.to_thread(metrics.collect)),
            champion=current.manifest.model_version if current else None,
            challenger=challenger.manifest.model_version if challenger else None,
        )


def matrix(metrics: list[Metric]) -> Matrix:
    """The comparisons of all workers; decisions of the canary's share are turned around."""
    places = {action.label: int(action) for action in Action}
    counts = [[0] * ACTION_COUNT for _ in Action]
    skipped = 0
    for sample in (sample for metric in metrics for sample in metric.samples):
        if sample.name == "drl_shadow_skipped_total":
            skipped += int(sample.value)
        if sample.name == "drl_shadow_comparisons_total":
            decided = places[sample.labels["action"]]
            other = places[sample.labels["other_action"]]
            if sample.labels["role"] == "challenger":
                decided, other = other, decided
            counts[decided][other] += int(sample.value)
    return Matrix(counts=counts, skipped=skipped)


def pictures(found: Evaluation) -> list[Chart]:
    """Charts of an evaluation; those that have nothing to show are left out."""

    def compared(title: str, figure: str, unit: str = "") -> Chart | None:
        return chart(title, [_value(found, name, figure) for name in found.policies], unit=unit)

    gains = [
        Value(words(name), found.advantage_mean.get(name), interval)
        for name, interval in found.advantage.items()
    ]
    types = [
        Value(
            f"{words(name)} ({group.malicious})",
            group.policies.get("drl", {}).get("containment"),
            group.intervals.get("containment"),
            strong=True,
        )
        for name, group in found.per_attack_type.items()
        if group.malicious
    ]
    drawn = [
        compared("Utility per episode (higher is better)", "utility"),
        chart("Advantage of drl over each policy, paired by episode", gains),
        *(compared(f"{words(figure).capitalize()}, share", figure, "%") for figure in _SHARES),
        chart("Containment by drl of each attack type (malicious episodes)", types, unit="%"),
    ]
    return [one for one in drawn if one is not None]


def _value(found: Evaluation, name: str, figure: str) -> Value:
    interval = found.intervals.get(name, {}).get(figure)
    return Value(words(name), found.policies[name].get(figure), interval, strong=name == "drl")


def _evaluation(manifest: Manifest) -> Evaluation | None:
    """What a manifest carries of its evaluation; None where it carries another form of it."""
    read: Callable[..., Evaluation] = msgspec.convert
    try:
        return read(manifest.evaluation, Evaluation)
    except msgspec.ValidationError:
        return None
