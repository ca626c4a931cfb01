"""The console: pages for people, rendered here, behind a session cookie of their own."""
