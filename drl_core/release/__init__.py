"""Signed releases of models: manifest, store, signing keys, and the check of the ONNX graph.

The asset graph publishes an ONNX graph with its manifest, signed; the service verifies signature,
sequence, checksum and graph before it loads anything. Whatever is wrong is a `BundleError`.
"""
