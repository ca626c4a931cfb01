"""Decisions over HTTP: events in, actions with their Q-values out."""
