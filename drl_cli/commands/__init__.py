"""The subcommands of `drl`, one module for each group."""
