"""`python -m benchmarks.forgetting [PATH ...] [--seeds N] [--capacity ROWS] [--steps N]`.

Does incremental training forget? Attack types arrive one after another, a batch each, with a share
of the benign sessions; after each batch the policy goes on from the one before, with the new batch
and its replay alone, as in the asset graph. Beside it stands a policy trained from scratch on
everything that has come. Both are judged on held-out sessions of every type that has come, by their
loss: what an episode costs, minus its mean discounted return. Last, what an update takes in
processor time beside training from scratch.

Without a path the episodes are synthetic (`drl telemetry generate`): six attack types, which is a
made problem; with paths, those of any labelled telemetry with at least two attack types.
"""

import argparse
import time
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from drl_assets.learning import trainer
from drl_assets.learning.data.episodes import Episodes, from_experiences
from drl_assets.learning.evaluation import evaluate, policies
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.sources.importer import read_events
from drl_assets.sources.synthetic import generate_events
from drl_assets.tables import transforms
from drl_core.settings import Learning


def batches_of(frame: pl.DataFrame, seed: int) -> tuple[list[str], list[pl.DataFrame]]:
    """Attack types in a random order, and a batch for each with its share of benign sessions."""
    rng = np.random.default_rng(seed)
    bad = frame.filter(pl.col("is_malicious"))
    main = bad.group_by("session_id").agg(pl.col("attack_type").mode().sort().first())
    types = sorted(main["attack_type"].unique().to_list())
    rng.shuffle(types)
    benign = sorted(set(frame["session_id"]) - set(bad["session_id"]))
    rng.shuffle(benign)
    of = {**dict(main.iter_rows()), **{s: types[i % len(types)] for i, s in enumerate(benign)}}
    return types, [
        frame.filter(pl.col("session_id").is_in([s for s, t in of.items() if t == kind]))
        for kind in types
    ]


def losses(checkpoint: Checkpoint, episodes: Episodes) -> dict[str, float]:
    """What an episode costs, by attack type; `benign` is one of them."""
    policy = policies.network_policy(checkpoint.network())
    returns = evaluate.simulate(policy, episodes).returns
    types = np.asarray(episodes.attack_type)
    return {str(kind): -float(returns[types == kind].mean()) for kind in np.unique(types)}


def timed(*args: object, **rest: object) -> tuple[Checkpoint, float]:
    began = time.process_time()
    found = trainer.train(*args, tune_baselines=False, **rest)  # type: ignore[arg-type]
    return found, time.process_time() - began


def run(frame: pl.DataFrame, learning: Learning, seed: int) -> tuple[float, float, float]:
    """One sequence of batches; prints its curve.

    Returns:
        Loss on earlier types after the last batch, incremental and from scratch, and the share of
        processor time that an update takes.
    """
    frame = transforms.hold_out(frame, 0.25, {})
    held_out = from_experiences(frame.filter(pl.col("held_out")))
    types, batches = batches_of(frame.filter(~pl.col("held_out")), seed)
    learning = msgspec.structs.replace(learning, seed=seed)
    parent: Checkpoint | None = None
    spent: list[tuple[float, float]] = []
    print(f"\nseed {seed}{'':<24}loss on earlier types{'':>12}loss on the new type   CPU s")
    print(f"{'batch':<31}{'incremental':>12}{'scratch':>10}{'never act':>11}", end="")
    print(f"{'incremental':>13}{'scratch':>9}  update  scratch")
    for stage, (kind, batch) in enumerate(zip(types, batches, strict=True)):
        parent, update_s = timed(batch, learning, parent=parent)
        scratch, scratch_s = timed(pl.concat(batches[: stage + 1]), learning)
        spent.append((update_s, scratch_s))
        ours, theirs = losses(parent, held_out), losses(scratch, held_out)
        idle = {t: -float(r) for t, r in _idle(held_out).items()}
        earlier = [t for t in types[:stage] if t in ours]
        cells = [np.mean([one[t] for t in earlier] or [np.nan]) for one in (ours, theirs, idle)]
        new = [one.get(kind, np.nan) for one in (ours, theirs)]
        print(f"{stage + 1} {kind:<29}" + "".join(f"{c:>11.3f}" for c in (*cells, *new)), end="")
        print(f"{update_s:>9.1f}{scratch_s:>9.1f}", flush=True)
    share = sum(u for u, _ in spent[1:]) / sum(s for _, s in spent[1:])
    return float(cells[0]), float(cells[1]), share


def _idle(episodes: Episodes) -> dict[str, float]:
    returns = evaluate.simulate(policies.never_act, episodes).returns
    types = np.asarray(episodes.attack_type)
    return {str(kind): float(returns[types == kind].mean()) for kind in np.unique(types)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--capacity", type=int, default=100_000, help="rows of the replay")
    parser.add_argument("--episodes", type=int, default=1200, help="synthetic ones")
    parser.add_argument("--steps", type=int, default=Learning().incremental_steps)
    given = parser.parse_args()
    events = (
        list(read_events(given.paths))
        if given.paths
        else list(generate_events(given.episodes, 30, seed=0))
    )
    frame = transforms.experiences_of([events])
    if not given.paths:  # independent episodes, each a session of its own
        frame = frame.with_columns(session_id=pl.col("episode_id"))
    learning = Learning(replay_capacity=given.capacity, incremental_steps=given.steps, device="cpu")
    found = np.array([run(frame, learning, seed) for seed in range(given.seeds)])
    ratio = found[:, 0].mean() / found[:, 1].mean()
    print(
        f"\nafter the last batch, mean of {given.seeds} seeds: loss on earlier types "
        f"{found[:, 0].mean():.3f} incremental, {found[:, 1].mean():.3f} from scratch: "
        f"{100 * (ratio - 1):+.1f} %; an update takes {100 * found[:, 2].mean():.0f} % of the "
        "processor time of training from scratch"
    )


if __name__ == "__main__":
    main()
