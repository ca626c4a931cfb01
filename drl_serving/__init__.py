"""The inference service: decides what to do about a running artefact, and lands its telemetry."""
