"""The policy's contract: what a state, an action and a reward are.

Telemetry events go in; the 30 features of a state, the mask of allowed actions and the reward of
each action come out. Training, evaluation and the service use these definitions and no others.
"""
