"""Litestar side."""
