"""Release gates: what a challenger must show before it is published."""
