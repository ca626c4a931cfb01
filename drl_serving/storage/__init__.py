"""The workers' storage: shared state (LMDB), outbox and its drainer, group commit."""
