"""The contract that training and serving share: telemetry, policy, releases, storage, settings.

Imports numpy, msgspec and the standard library; a signing library only inside `release`, a database
driver only inside `storage` and `migrations`, so that the service stays small and starts fast.
"""
