"""The error type of this package: a release that must not be served, with a stable reason."""


class BundleError(ValueError):
    """A release that must not be served. `reason` is a short, stable name for metrics and tests."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")
