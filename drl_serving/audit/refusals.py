"""Refused requests: each is counted, and noted in the audit log unless the same was just noted."""

from drl_serving.access.rate_limits import Throttle
from drl_serving.audit.log import Audit
from drl_serving.observability.metrics import Metrics

NOTES_PER_S = 0.1
NOTES_AT_ONCE = 5
"""Records of one caller and reason; a flood of refusals fills no disk."""


class Refusals:
    """What `AccessControl` tells of a refusal, taken to the metrics and the audit log."""

    def __init__(self, metrics: Metrics, audit: Audit) -> None:
        self._metrics = metrics
        self._audit = audit
        self._notes = Throttle(NOTES_PER_S, NOTES_AT_ONCE)

    def __call__(self, reason: str, who: str, client: str | None) -> None:
        """Count one refusal, and note it where few of its kind were noted lately."""
        self._metrics.refusals.labels(reason).inc()
        if self._notes.count(f"{reason} {who} {client}"):
            self._audit.record("access.denied", actor=who, result=reason, client=client)
