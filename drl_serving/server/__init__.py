"""Pre-fork server: worker processes and their supervisor."""
