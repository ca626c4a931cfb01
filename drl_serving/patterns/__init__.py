"""Learned attack patterns over HTTP: taken in through the outbox, found in PostgreSQL."""
