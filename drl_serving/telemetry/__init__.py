"""Telemetry over HTTP: events in, acknowledged once they are durable."""
