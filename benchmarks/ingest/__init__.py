"""How fast telemetry becomes events, states and experiences, on one core."""
