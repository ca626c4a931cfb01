"""The decision engine: step order, scoring, action selection, batching, shadow."""
