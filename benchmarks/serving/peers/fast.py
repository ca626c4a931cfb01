"""FastAPI: an async route with pydantic models, under uvicorn."""

from fastapi import FastAPI  # type: ignore[import-not-found]

from benchmarks.serving.peers.event import Decision, Event
from benchmarks.serving.peers.scoring import score, session

app = FastAPI()
_session = session()


@app.post("/decide")  # type: ignore[untyped-decorator]
async def decide(event: Event) -> Decision:
    """Score an event."""
    return Decision(**score(_session, event.model_dump()))
