"""BentoML: a service class, one worker."""

import bentoml  # type: ignore[import-not-found]

from benchmarks.serving.peers.event import Decision, Event
from benchmarks.serving.peers.scoring import score, session


@bentoml.service(workers=1)
class Policy:
    """Scores an event."""

    def __init__(self) -> None:
        self.session = session()

    @bentoml.api  # type: ignore[untyped-decorator]
    def decide(self, event: Event, /) -> Decision:
        """Action and Q-values."""
        return Decision(**score(self.session, event.model_dump()))
