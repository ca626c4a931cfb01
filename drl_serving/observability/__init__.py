"""Metrics, traces, logs and their redaction."""
