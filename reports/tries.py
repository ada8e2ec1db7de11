"""Pass@k and maj@k against k: what more samples of the same problem are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite, log2

import numpy as np

from reports.attempts import MOST
from reports.curves import Panel, Series, uneven_panel
from reports.data import data
from reports.load import Run
from reports.looks import Look
from reports.numbers import span
from reports.quantities import Axis, share
from reports.stats import Interval, maj_at_k, pass_at_k, t_interval
from reports.tally import VOTERS, Tally

K = Axis("k", "samples a problem, k", ("k",))


def _ks(most: int) -> list[int]:
    """1, 2, 4 … and the most there is."""
    return sorted({2**power for power in range(int(log2(most)) + 1)} | {most})


def _passed(one: Tally, k: int) -> float:
    scores = [pass_at_k(n, c, k) for n, c in one.counts.values()]
    return sum(scores) / len(scores)


def _voted(one: Tally, k: int) -> float:
    scores = [maj_at_k(answers, right, k) for answers, right in one.votes.values()]
    return sum(scores) / len(scores)


def _lines(
    arms: Mapping[str, Sequence[Tally]], ks: Sequence[int], score: Callable[[Tally, int], float]
) -> dict[str, list[Interval]]:
    return {label: [t_interval([score(one, k) for one in found]) for k in ks] for label, found in arms.items()}


def _panel(
    title: str, caption: str, lines: Mapping[str, Sequence[Interval]], ks: Sequence[int], looks: Mapping[str, Look]
) -> Panel:
    x = np.array([log2(k) for k in ks])
    found: list[Series] = []
    for label, cells in lines.items():
        mean = np.array([cell.mean for cell in cells])
        low = np.array([max(0.0, cell.low) if isfinite(cell.low) else cell.mean for cell in cells])
        high = np.array([min(1.0, cell.high) if isfinite(cell.high) else cell.mean for cell in cells])
        found.append(Series(label, x, mean, low, high))
    quantity = replace(share("k", title, caption), from_zero=False)
    return uneven_panel(quantity, K, found, looks, [(log2(k), str(k)) for k in ks])


def tries(runs: Sequence[Run], tallies: Mapping[str, Tally], looks: Mapping[str, Look]) -> list[Panel]:
    """A panel of pass@k, and one of maj@k where problems were sampled often enough; none where they were sampled once."""
    arms: dict[str, list[Tally]] = {}
    for run in runs:
        if run.id in tallies and tallies[run.id].counts:
            arms.setdefault(run.label, []).append(tallies[run.id])
    least = min((n for found in arms.values() for one in found for n, _ in one.counts.values()), default=0)
    if least < 2:
        return []
    ks = _ks(least)
    problems = [len(one.counts) for found in arms.values() for one in found]
    who = (
        f"Mean over problems ({span(problems, 'problem')}, at least {least} samples each), then over "
        f"{span([len(found) for found in arms.values()], 'finished seed')}; band: 95% t interval over seeds, none for one seed. "
        "Samples on a log scale."
    )
    found = [(
        "pass@k", "The chance that one of k samples is right (unbiased, 1 − C(n − c, k)/C(n, k)). " + who,
        _lines(arms, ks, _passed),
    )]  # fmt: skip
    voting = {label: [one for one in said if one.votes] for label, said in arms.items()}
    voting = {label: said for label, said in voting.items() if said}
    most = max((len(answers) for said in voting.values() for one in said for answers, _ in one.votes.values()), default=0)
    if least >= VOTERS and 0 < most <= MOST:
        what = (
            "The chance that the most frequent answer of k samples is right (all subsets counted; ties share, and an answer that "
            "is judged both ways counts by its share). "
        )
        found.append(("maj@k", what + who, _lines(voting, ks, _voted)))
    drawn: list[Panel] = []
    for name, caption, lines in found:
        rows = [
            (label, k, cell.mean, cell.low, cell.high, cell.n)
            for label, cells in lines.items()
            for k, cell in zip(ks, cells, strict=True)
        ]
        numbers = data(name.replace("@", "-at-"), ("arm", "k", name, "low", "high", "seeds"), rows)
        drawn.append(replace(_panel(f"{name}, %", caption, lines, ks, looks), data=numbers))
    return drawn
