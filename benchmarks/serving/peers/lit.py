"""LitServe: a LitAPI, one worker."""

import sys
from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks.serving.peers.scoring import score, session


class PolicyAPI(litserve.LitAPI):  # type: ignore[misc]
    """Scores an event."""

    def setup(self, device: str) -> None:
        """Open the graph."""
        self.session = session()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """The event's fields."""
        return request

    def predict(self, event: dict[str, Any]) -> dict[str, Any]:
        """Action and Q-values."""
        return score(self.session, event)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """As they are."""
        return output


if __name__ == "__main__":
    litserve.LitServer(PolicyAPI(), accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False
    )
