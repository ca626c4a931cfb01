"""PostgreSQL, the outbox, attack patterns and field encryption."""
