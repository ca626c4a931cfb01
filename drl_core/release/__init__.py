"""Releases: the signed bundle store, signing keys, and the ONNX graph allow-list."""
