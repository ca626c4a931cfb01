"""Learning: torch lives here and nowhere else. Experiences in, checkpoints and ONNX out."""
