"""What training and serving agree on: the event, the 30 features, the actions, the costs, the files.

Imports numpy, msgspec and the standard library only (a signing library inside `bundle`, a database
driver inside `patterns`), so that the service which uses it stays small and starts fast.
"""
