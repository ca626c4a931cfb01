"""Telemetry: the event, its protobuf form, and the landing zone that keeps it."""
