"""Decision state: episode store, journal, recovery, decision log."""
