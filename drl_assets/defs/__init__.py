"""Dagster, and nothing but Dagster: folder order = data order = asset group."""
