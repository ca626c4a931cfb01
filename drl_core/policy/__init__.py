"""The policy's contract: actions, features and reward."""
