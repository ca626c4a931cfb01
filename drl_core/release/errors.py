"""The error of a release that must not be served; keys, graphs and bundles raise it."""


class BundleError(ValueError):
    """A release that must not be served. `reason` is a short, stable name for metrics and tests."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")
