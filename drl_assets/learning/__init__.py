"""Learning: torch lives here and nowhere else. Frames of experiences in, checkpoints and ONNX out."""
