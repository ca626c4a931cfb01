"""Learners: algorithms, networks, targets, cross-fitting, model selection, checkpoints."""
