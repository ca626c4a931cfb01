"""The release gates on a checkpoint and on its evaluation; all of them block.

What each holds a challenger to stands in `drl_assets.learning.gates.release_gates`.
"""

from drl_assets.defs.gate_results import checks_of

release_gates = checks_of("trained_checkpoint", "policy_evaluation")
