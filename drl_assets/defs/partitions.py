"""Dynamic partitions: each is one micro-batch, a sealed batch of the landing zone."""

import dagster as dg

batches = dg.DynamicPartitionsDefinition(name="telemetry_batch")
