"""Dagster side."""
