"""Telemetry: the event and its validation, its protobuf form, and the landing zone.

JSON or protobuf from sandboxes goes in; validated events come out, and are kept as durable segments
that the asset graph takes in batches. Invalid records become dead letters.
"""
