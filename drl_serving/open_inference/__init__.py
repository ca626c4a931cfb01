"""The Open Inference Protocol V2: raw rows in, the model's scores out."""
