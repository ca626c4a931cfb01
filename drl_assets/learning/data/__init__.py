"""Training data: episodes, trajectories, the replay environment and the replay buffer."""
