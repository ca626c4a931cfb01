"""Export: checkpoint to ONNX, to a signed release, to attack patterns."""
