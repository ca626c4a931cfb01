"""Measurements against peers, in the same run; figures are ratios first, absolute values second."""
