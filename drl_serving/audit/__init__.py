"""Who did what: append-only records, written off the event loop."""
