"""Training against named peers, the floor of the matrix products, and an optimum."""
