"""Offline evaluation: policies, baselines, curves, off-policy estimates, bootstrap."""
