"""Refused requests: each is counted, and recorded in the audit log at a limited rate."""

from drl_serving.access.rate_limits import Throttle
from drl_serving.audit.log import Audit
from drl_serving.observability.metrics import Metrics

NOTES_PER_S = 0.1
NOTES_AT_ONCE = 5
"""Records of one caller and reason; a flood of refusals fills no disk."""


class Refusals:
    """Listener of `AccessControl`: refusals go to the metrics and the audit log."""

    def __init__(self, metrics: Metrics, audit: Audit) -> None:
        self._metrics = metrics
        self._audit = audit
        self._notes = Throttle(NOTES_PER_S, NOTES_AT_ONCE)

    def __call__(self, reason: str, who: str, client: str | None) -> None:
        """Count one refusal, and record it unless many of its kind were recorded lately."""
        self._metrics.refusals.labels(reason).inc(1)
        if self._notes.count(f"{reason} {who} {client}"):
            self._audit.record("access.denied", actor=who, result=reason, client=client)
