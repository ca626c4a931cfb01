"""Telemetry comes in micro-batches: a partition is one sealed batch of the landing zone."""

import dagster as dg

batches = dg.DynamicPartitionsDefinition(name="telemetry_batch")
