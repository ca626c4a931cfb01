"""strace logs: recorder, parser, counters, windows."""
