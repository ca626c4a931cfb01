"""The command line `drl`: commands, and running everything on one machine."""
