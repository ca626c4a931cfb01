"""ASGI middleware in front of the application: authentication, limits, load shedding, fast path."""
