"""The one sentence that says what was found, and never more than the intervals support."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from reports.numbers import percent, points
from reports.stats import Interval, paired

if TYPE_CHECKING:
    from reports.leaderboard import Board

ENOUGH_SEEDS = 5
MANY_MODELS = 2  # with more, they are counted instead of named one by one
Row = dict[str, Any]


def finding(boards: Sequence[Board]) -> str:
    """What the boards show together: the best arm of each against its base, its runner-up and its controls."""
    rows = [row for board in boards for row in board.frame.to_dict("records")]
    scored = [board for board in boards if any(len(scores) for scores in board.frame["scores"])]
    if not scored:
        return "No run has finished yet, so there is nothing to compare."
    several = len(boards) > 1
    models = len({board.model for board in boards})
    if models > MANY_MODELS:
        clauses = [_over_models([board for board in scored if board.task == task]) for task in _tasks(scored)]
    else:
        clauses = [_clause(board, several, models > 1) for board in scored]
    unscored = len(boards) - len(scored)
    if unscored:
        clauses.append(f"{unscored} of {len(boards)} tasks and models have no finished run")
    failed, absent, asked = (sum(row[column] for row in rows) for column in ("failed", "absent", "asked"))
    if failed:
        clauses.append(f"{failed} of {asked} runs failed")
    if absent:
        clauses.append(f"{absent} of {asked} runs have not finished")
    done = [row["done"] for row in rows if row["done"]]
    sentence = "; ".join(clauses)
    if min(done) < ENOUGH_SEEDS:
        few = "" if min(done) == max(done) else "as few as "
        return f"Preliminary, with {few}{_seeds(min(done))}: {sentence}."
    return f"{sentence[0].upper()}{sentence[1:]}."


def _clause(board: Board, several: bool, models: bool) -> str:
    rows = [row for row in board.frame.to_dict("records") if row["scores"]]
    place = f"on {board.task}" + (f" with {board.model}" if models else "")
    trained = [row for row in rows if not row["base"] and not row["control"]]
    if not trained:
        return f"{place}, no trained arm has finished"
    best, *others = trained
    said = [f"{place}, {best['arm']} {_against_base(best, board.split)}"]
    if several:
        return said[0]
    if others:
        said.append(_against_runner_up(best, others[0]))
    return "; ".join(said + [_control(row, best) for row in rows if row["control"]])


def _tasks(boards: Sequence[Board]) -> list[str]:
    return list(dict.fromkeys(board.task for board in boards))


def _over_models(boards: Sequence[Board]) -> str:
    """Of one task: which arm is best with how many models, and with how many it is told from the base."""
    best: dict[str, list[str]] = {}
    deltas: list[Interval] = []
    for board in boards:
        trained = [row for row in board.frame.to_dict("records") if row["scores"] and not row["base"] and not row["control"]]
        if trained:
            row = trained[0]
            best.setdefault(row["arm"], []).append(board.model)
            deltas.append(Interval(row["delta"], row["delta_low"], row["delta_high"], row["delta_seeds"]))
    if not deltas:
        return f"on {boards[0].task}, no trained arm has finished"
    ranked = sorted(best.items(), key=lambda item: -len(item[1]))
    leads = [f"{arm} with {len(models)} ({', '.join(models)})" for arm, models in ranked]
    place = f"on {boards[0].task}, of {len(deltas)} models, the best arm is {_listed(leads)}"
    if all(delta.n < 2 for delta in deltas):
        return f"{place}, on too few seeds to tell it from its base"
    above, below = sum(delta.low > 0 for delta in deltas), sum(delta.high < 0 for delta in deltas)
    fallen = f" and below it with {below}" if below else ""
    return f"{place}; it is distinguishably above its base with {above} of {len(deltas)}{fallen}"


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _against_base(best: Row, split: str) -> str:
    delta = Interval(best["delta"], best["delta_low"], best["delta_high"], best["delta_seeds"])
    solves = f"solves {percent(best['pass@1'])}% of {'held-out' if split == 'test' else split} problems"
    if delta.n == 0:
        return f"{solves}, with no base to compare to on the same seeds"
    if delta.n == 1:
        return f"{solves}, {points(delta.mean)} points from the base on one seed, too few for an interval"
    if not delta.excludes(0):
        return f"scores highest at {percent(best['pass@1'])}%, not distinguishable from the base ({_interval(delta)})"
    if delta.mean > 0:
        return f"{solves}, {points(delta.mean)} points over the base ({_bounds(delta)})"
    return f"scores highest of the trained arms and yet falls {points(delta.mean)} points from the base ({_bounds(delta)})"


def _against_runner_up(best: Row, second: Row) -> str:
    lead = paired(best["scores"], second["scores"])
    rival = f"{second['arm']} ({percent(second['pass@1'])}%)"
    if lead.n < 2:
        return f"too few seeds are shared to tell it from {rival}"
    if lead.low > 0:
        return f"it leads {rival} by {points(lead.mean)} points ({_bounds(lead)})"
    if lead.high < 0:
        return f"yet {rival} is ahead of it on the seeds that both finished ({_interval(lead)})"
    return f"it is not distinguishable from {rival} ({_interval(lead)})"


def _control(row: Row, best: Row) -> str:
    delta = Interval(row["delta"], row["delta_low"], row["delta_high"], row["delta_seeds"])
    name = f"the control {row['arm']}"
    if delta.n < 2:
        return f"{name} has too few seeds to be a control"
    if delta.excludes(0):
        beaten = paired(best["scores"], row["scores"])
        held = "" if beaten.low > 0 else f", and {best['arm']} is not distinguishably better than it"
        return f"{name} moves too, {points(delta.mean)} points ({_bounds(delta)}){held}"
    return f"{name} is not distinguishable from the base ({_interval(delta)})"


def _interval(delta: Interval) -> str:
    return f"difference {points(delta.mean)}, {_bounds(delta)}"


def _bounds(delta: Interval) -> str:
    assert isfinite(delta.low)
    return f"95% CI {points(delta.low)} to {points(delta.high)}, {_seeds(delta.n)}"


def _seeds(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"
