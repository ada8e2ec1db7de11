"""How often the intervals of the reports hold the truth, and how often a method is called different from itself.

Both start from real results, docs/results/seeds.json: how many of two samples were right, for each of 500 problems, of a base
and of SFT from it with many seeds (sweeps/seeds.toml).

coverage     Comparisons are drawn from a model that is fitted to those results: problems as hard as measured, an effect of the
             seed on all of its problems and one on each, two samples a problem. The truth is then known, for the same problems
             and for others of the kind.
false alarm  Two disjoint sets of the real seeds, and problems drawn with replacement: the share of trials in which the paired
             interval excludes 0. Then the same with twice the smallest detectable difference added, and how often it is found.

Prints Markdown, as docs/statistics.md has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from scipy.special import expit, logit

from reports.load import load
from reports.stats import Interval, clustered, detectable, paired, t_interval, two_level

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "seeds.json"
SEEDS = (3, 5, 8)
SAMPLES = 2
DRAWS = 500  # of a bootstrap
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)

Pool = dict[str, np.ndarray]  # arm: right samples, (seeds, problems)


def collect(root: Path) -> Pool:
    """The pool of the comparison `seeds` under `root`, of seeds that both arms finished, problems in the order of their names."""
    runs = {(run.label, run.seed): run for run in load(root, "seeds").runs if run.done}
    arms = sorted({label for label, _ in runs})
    both = sorted(
        seed for label, seed in runs if label == arms[0] and seed is not None and all((arm, seed) in runs for arm in arms)
    )
    pool: Pool = {}
    for arm in arms:
        rows = list[list[int]]()
        for seed in both:
            right: dict[str, int] = {}
            for row in runs[arm, seed].evaluation("test"):
                if not row["greedy"]:
                    right[row["problem"]] = right.get(row["problem"], 0) + int(row["reward"])
            rows.append([right[problem] for problem in sorted(right)])
        pool[arm] = np.array(rows)
    return pool


def read(path: Path = RESULTS) -> Pool:
    return {arm: np.array([list(map(int, row)) for row in rows]) for arm, rows in json.loads(path.read_text()).items()}


@dataclass(frozen=True)
class Arm:
    """A method as the simulation knows it: samples are right by expit(hardness + effect of seed + of seed and problem)."""

    logit_N: np.ndarray
    seed: float  # standard deviations, in logits
    mixed: float
    failing: float = 0.0  # the share of seeds that learn nothing

    def truth(self, start: Arm) -> np.ndarray:
        """The expected score of each problem over seeds, shape (N)."""
        spread = np.hypot(self.seed, self.mixed)
        mean_N = expit(self.logit_N[:, None] + spread * NODES) @ WEIGHTS / WEIGHTS.sum()
        return mean_N if not self.failing else (1 - self.failing) * mean_N + self.failing * start.truth(start)

    def draw(self, random: Generator, S: int, start: Arm) -> np.ndarray:
        """Mean scores of S seeds, shape (S, N)."""
        N = len(self.logit_N)
        effects_SN = self.seed * random.normal(size=(S, 1)) + self.mixed * random.normal(size=(S, N))
        learnt_SN = random.binomial(SAMPLES, expit(self.logit_N + effects_SN)) / SAMPLES
        fails_S = random.random((S, 1)) < self.failing
        return np.where(fails_S, start.draw(random, S, start), learnt_SN) if self.failing else learnt_SN


def fitted(right_SN: np.ndarray) -> Arm:
    """The arm whose spread between seeds, and whose disagreement between two samples, are those measured, to first order."""
    S, N = right_SN.shape
    p_N = (right_SN.sum(axis=0) + 0.5) / (SAMPLES * S + 1)
    slope_N = p_N * (1 - p_N)
    within_SN = right_SN * (SAMPLES - right_SN) / (SAMPLES * (SAMPLES - 1))
    chance_SN = right_SN / SAMPLES
    between = chance_SN.mean(axis=1).var(ddof=1) - within_SN.mean() / SAMPLES / N
    seed = np.sqrt(max(0.0, between)) / slope_N.mean()
    each = (chance_SN.var(axis=0, ddof=1) - within_SN.mean(axis=0) / SAMPLES).mean()
    mixed = np.sqrt(max(0.0, each / (slope_N**2).mean() - seed**2))
    return Arm(logit(p_N), float(seed), float(mixed))


def intervals(values_SN: np.ndarray, base_SN: np.ndarray, trial: int) -> Iterator[tuple[str, Interval]]:
    """Each way of saying how far apart two arms are, with its name."""
    values, base = dict(enumerate(values_SN.mean(axis=1))), dict(enumerate(base_SN.mean(axis=1)))
    yield "t over seeds (the headline)", paired(values, base)
    difference_S1 = (values_SN - base_SN).mean(axis=1, keepdims=True)
    yield "percentile bootstrap over seeds", two_level(difference_S1, np.zeros_like(difference_S1), trial, DRAWS)
    yield "two-level bootstrap over seeds and problems", two_level(values_SN, base_SN, trial, DRAWS)
    by_problem, base_by_problem = ({str(i): x for i, x in enumerate(a.mean(axis=0))} for a in (values_SN, base_SN))
    yield "clustered by problem, seeds averaged", clustered(by_problem, base_by_problem)


def coverage(arm: Arm, start: Arm, S: int, trials: int) -> dict[str, tuple[float, float, float]]:
    """Of each interval: the shares of trials in which it holds the difference on these problems and on all, its half-width."""
    random = default_rng(S)
    level_N = arm.truth(start)
    truth_N = level_N - start.truth(start)
    N = len(truth_N)
    counts: dict[str, list[tuple[bool, bool, float]]] = {}
    for trial in range(trials):
        chosen = random.integers(N, size=N)
        own, other = replace(arm, logit_N=arm.logit_N[chosen]), replace(start, logit_N=start.logit_N[chosen])
        values_SN, base_SN = own.draw(random, S, other), other.draw(random, S, other)
        for name, interval in intervals(values_SN, base_SN, trial):
            held = [not interval.excludes(truth) for truth in (truth_N[chosen].mean(), truth_N.mean())]
            counts.setdefault(name, []).append((held[0], held[1], interval.half))
        level = t_interval(values_SN.mean(axis=1))
        held = [not level.excludes(truth) for truth in (level_N[chosen].mean(), level_N.mean())]
        counts.setdefault("t over seeds, of one arm's score", []).append((held[0], held[1], level.half))
    return {name: tuple(np.mean(rows, axis=0)) for name, rows in counts.items()}


def against_itself(scores_SN: np.ndarray, n: int, trials: int) -> tuple[float, float, float]:
    """The shares of trials in which n seeds differ from n others, in which one seed differs from another by the interval over
    problems, and in which a planted difference, twice the smallest detectable one, is found."""
    random = default_rng(n)
    pool, N = scores_SN.shape
    unit = detectable(1.0, n)
    alarms, checkpoints, found = [], [], []
    for _ in range(trials):
        seeds, problems = random.permutation(pool)[: 2 * n], random.integers(N, size=N)
        means = scores_SN[:, problems].mean(axis=1)
        planted = 2 * unit * float(means.std(ddof=1)) * np.sqrt(2)
        first, second = (dict(enumerate(means[half])) for half in (seeds[:n], seeds[n:]))
        alarms.append(paired(first, second).excludes(0))
        found.append(paired({seed: score + planted for seed, score in first.items()}, second).low > 0)
        one, other = ({str(i): x for i, x in enumerate(scores_SN[s])} for s in seeds[:2])
        checkpoints.append(clustered(one, other).excludes(0))
    return float(np.mean(alarms)), float(np.mean(checkpoints)), float(np.mean(found))


def scenarios(pool: Pool) -> dict[str, tuple[Arm, Arm]]:
    """What the comparisons are drawn from: an arm and the start that it is compared with."""
    arm, start = fitted(pool["sft"]), fitted(pool["base"])
    p_N = expit(arm.logit_N)
    return {
        "as measured": (arm, start),
        "seeds two points apart": (replace(arm, seed=0.02 / (p_N * (1 - p_N)).mean()), start),
        "one seed in ten learns nothing": (replace(arm, failing=0.1), start),
    }


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> str:
    return f"{row(*cells)}\n|{'---|' * len(cells)}"


def tables(pool: Pool, trials: int) -> Iterator[str]:
    counts = [str(n) for n in SEEDS]
    for scenario, (arm, start) in scenarios(pool).items():
        yield f"{scenario.capitalize()} (effects: {arm.seed:.3f} logits between seeds, {arm.mixed:.2f} on each problem):\n"
        others = [f"{n}, other problems" for n in counts]
        yield header("% that hold the true difference", *counts, *others, "± points, 5 seeds")
        found = [coverage(arm, start, n, trials) for n in SEEDS]
        for name in found[0]:
            shares = [percent(held[name][target]) for target in (0, 1) for held in found]
            yield row(name, *shares, percent(found[SEEDS.index(5)][name][2]))
        yield ""
    scores = {arm: right_SN / SAMPLES for arm, right_SN in pool.items()}
    scores["sft − base, seed by seed"] = scores["sft"] - scores["base"]
    yield header(
        "%", *(f"{n} seeds against {n} others" for n in counts), *(f"planted, {n}" for n in counts), "1 against 1, by problem"
    )
    for name, scores_SN in scores.items():
        found = [against_itself(scores_SN, n, trials) for n in SEEDS]
        yield row(name, *(percent(f[0]) for f in found), *(percent(f[2]) for f in found), percent(found[0][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, metavar="N", help="of each cell (default: %(default)s)")
    parser.add_argument(
        "--collect", type=Path, metavar="ROOT", help=f"write {RESULTS.name} from the comparison `seeds` there, and stop"
    )
    options = parser.parse_args()
    if options.collect:
        pool = collect(options.collect)
        text = {arm: ["".join(map(str, row)) for row in right_SN.tolist()] for arm, right_SN in pool.items()}
        RESULTS.write_text(json.dumps(text, indent=0) + "\n")
        print(f"{RESULTS}: {len(pool['sft'])} seeds")
        return
    for line in tables(read(), options.trials):
        print(line, flush=True)


if __name__ == "__main__":
    main()
