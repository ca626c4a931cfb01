"""`python -m benchmarks.policies [PATH ...] [--folds K] [--seeds N] [--oracles] [--sessions]`.

The table of policies, ours beside its baselines, all fitted and tuned on the same sessions and
judged on sessions that none of them has seen. With paths: cross-validation by session; each seed
splits the sessions anew, so every episode is judged once per seed. `--oracles`: regret on G1 and
G2, whose optimum is known. Intervals are 95 %, sessions resampled, of the mean over the seeds;
`ours minus it` is paired by episode.
"""

import argparse
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.training import regret
from drl_assets.learning import trainer
from drl_assets.learning.data.episodes import Episodes, Floats, from_experiences
from drl_assets.learning.evaluation import baselines, evaluate, policies
from drl_assets.learning.evaluation.bootstrap import SessionBootstrap
from drl_assets.learning.gates import oracle_mdps
from drl_assets.sources.importer import read_events
from drl_assets.tables import transforms
from drl_core.policy.actions import CONTAINING, Action
from drl_core.settings import Learning

OURS = "drl"


def splits(episodes: Episodes, folds: int, seed: int) -> list[np.ndarray]:
    """Episodes of each fold: whole sessions, benign and malicious ones in like numbers."""
    session = np.asarray(episodes.session)
    bad = {s: bool(episodes.malicious[session == s].any()) for s in np.unique(session)}
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [np.sort(t) for _, t in split.split(session, [bad[s] for s in session], session)]


def cross_validate(
    frame: pl.DataFrame, episodes: Episodes, tests: list[np.ndarray], seed: int
) -> dict[str, list[evaluate.Rollouts]]:
    """Every policy played on every fold of sessions, trained on the others."""
    found: dict[str, list[evaluate.Rollouts]] = defaultdict(list)
    for number, test in enumerate(tests):
        held_out = sorted({episodes.session[e] for e in test})
        part = frame.filter(~pl.col("session_id").is_in(held_out))
        began = time.process_time()
        checkpoint = trainer.train(part, Learning(seed=seed, device="cpu"))
        chosen = {k: checkpoint.hyperparameters[k] for k in ("input_noise", "weight_decay")}
        spent = f"{time.process_time() - began:.0f} CPU s, {chosen}"
        print(f"seed {seed}, fold {number + 1} of {len(tests)}: {spent}", file=sys.stderr)
        players = policies.baseline_policies(checkpoint.baselines, seed)
        players |= {OURS: policies.network_policy(checkpoint.network())}
        players |= {"clairvoyant": policies.clairvoyant}
        for name, policy in players.items():
            found[name].append(evaluate.simulate(policy, episodes.select(test)))
    return found


def table(frame: pl.DataFrame, folds: int, seeds: int, shown: bool) -> None:
    """Prints the table of recorded telemetry."""
    columns: dict[str, dict[str, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    at_budget: dict[str, list[float]] = defaultdict(list)
    episodes = from_experiences(frame)
    for seed in range(seeds):
        tests = splits(episodes, folds, seed)
        if shown:
            for number, test in enumerate(tests):
                names = sorted({episodes.session[e] for e in test})
                print(f"seed {seed}, fold {number + 1}: {', '.join(names)}")
        place = np.argsort(np.concatenate(tests))
        for name, parts in cross_validate(frame, episodes, tests, seed).items():
            action = np.concatenate([part.final_action for part in parts])[place]
            stopped = np.isin(action, CONTAINING)
            reviewed = action == Action.REQUEST_HUMAN_REVIEW
            of = columns[name]
            of["utility"].append(np.concatenate([part.returns for part in parts])[place])
            of["contained"].append((stopped | reviewed).astype(np.float64))
            of["interrupted"].append(stopped.astype(np.float64))
            of["reviewed"].append(reviewed.astype(np.float64))
            shares = [  # by fold: a margin of one fold's policy means nothing in another's
                evaluate.containment_at(part.score, episodes.malicious[test], 0.01)
                for part, test in zip(parts, tests, strict=True)
            ]
            at_budget[name].append(float(np.mean([s for s in shares if s is not None])))
    sessions, bad = SessionBootstrap(episodes.session), episodes.malicious
    every = np.ones(len(bad))
    print(
        f"\n{len(bad)} episodes, {int(bad.sum())} malicious, {len(sessions.names)} sessions; "
        f"{folds} folds of sessions, {seeds} seed(s)"
    )
    print(f"{'':<23}{'utility':>9}{'95 %':>18}{'contained':>11}{'benign hit':>11}", end="")
    print(f"{'reviewed':>10}{'at 1 %':>8}{'ours minus it':>15}{'95 %':>18}")
    ours = np.mean(columns[OURS]["utility"], axis=0)
    for name, of in columns.items():
        utility = np.mean(of["utility"], axis=0)
        over = [np.mean(of[key], axis=0) for key in ("contained", "interrupted", "reviewed")]
        print(f"{name:<23}{utility.mean():>9.3f}", end="")
        print(f"{interval(sessions.ratio(utility, every)):>18}", end="")
        print(f"{over[0][bad].mean():>11.3f}{over[1][~bad].mean():>11.3f}", end="")
        print(f"{over[2].mean():>10.3f}{np.mean(at_budget[name]):>8.3f}", end="")
        difference = ours - utility
        paired = interval(sessions.ratio(difference, every)) if name != OURS else ""
        print(f"{difference.mean():>+15.3f}{paired:>18}" if paired else "", flush=True)


def interval(found: list[float] | None) -> str:
    return "one session" if found is None else f"[{found[0]:+.3f}, {found[1]:+.3f}]"


def oracle_table(seeds: int, trajectories: int) -> None:
    """Prints regret on the generators."""
    for oracle in (oracle_mdps.G1, oracle_mdps.G2):
        found: dict[str, list[float]] = defaultdict(list)
        for seed in range(seeds):
            rows = oracle.sample(trajectories, seed)
            tuned = baselines.tune(rows, seed)
            acting = {name: partial(_act, one) for name, one in tuned.items()} | {
                OURS: regret.ours(rows, seed)
            }
            for name, policy in acting.items():
                found[name].append(oracle.regret(policy).mean)
            print(f"{oracle.name}: seed {seed} done", file=sys.stderr)
        idle = oracle.optimum - oracle.constant_value(Action.CONTINUE_MONITORING)
        print(f"\n{oracle.name}: optimum {oracle.optimum:.4f}, always-monitor's regret {idle:.4f}")
        print(f"{trajectories} training trajectories; regret on 20,000 fresh ones, {seeds} seed(s)")
        print(f"{'':<23}{'regret':>8}{'share':>8}   of each seed")
        for name, values in found.items():
            each = " ".join(f"{value:.4f}" for value in values)
            print(f"{name:<23}{np.mean(values):>8.4f}{np.mean(values) / idle:>8.3f}   {each}")


def _act(baseline: dict[str, object], states: np.ndarray) -> np.ndarray:
    return baselines.act(baseline, states.astype(np.float64))[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="labelled telemetry")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--oracles", action="store_true", help="G1 and G2 too")
    parser.add_argument("--trajectories", type=int, default=2000, help="of the oracles")
    parser.add_argument("--sessions", action="store_true", help="list the sessions of each fold")
    given = parser.parse_args()
    if given.paths:
        frame = transforms.experiences_of([list(read_events(given.paths))])
        table(frame, given.folds, given.seeds, given.sessions)
    if given.oracles:
        oracle_table(given.seeds, given.trajectories)
    if not given.paths and not given.oracles:
        parser.error("give paths of labelled telemetry, or --oracles")


if __name__ == "__main__":
    main()
