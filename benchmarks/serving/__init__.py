"""Our service beside MLServer, BentoML, LitServe, FastAPI and bare ASGI, in one interleaved run."""
