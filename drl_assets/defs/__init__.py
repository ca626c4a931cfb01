"""Dagster definitions, loaded by folder: a folder is a stage of the data and an asset group."""
