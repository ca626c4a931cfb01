"""The subcommands of `drl`, a module a group."""
