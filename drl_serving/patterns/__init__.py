"""Learned attack patterns over HTTP."""
