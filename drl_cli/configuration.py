"""The configuration of this run of `drl`: read once, when a command first needs it."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drl_core.settings import Settings


@cache
def current_settings() -> "Settings":
    """The settings of this run.

    Raises:
        SettingsError: the configuration cannot be used; names the field.
    """
    from drl_core.settings import load  # on use: `--help` needs none of it

    return load()
