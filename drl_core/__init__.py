"""What training and serving agree on: event, 30 features, actions, costs, files.

Imports numpy, msgspec and the standard library only (a signing library inside `bundle`, a database
driver inside `patterns`), so that the service which uses it stays small and starts fast.
"""
