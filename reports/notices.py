"""What a reader must know before trusting a number: missing seeds, single seeds, no spread, values that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.leaderboard import Board
from reports.load import Comparison
from reports.numbers import percent, points, said_seeds
from reports.tally import Tally


def _of_board(board: Board, several: bool) -> list[str]:
    where = f" on {board.task} with {board.model}" if several else ""
    rows = board.frame.to_dict("records")
    base = next((row for row in rows if row["base"]), None)
    found: list[str] = []
    single = [row["arm"] for row in rows if len(row["scores"]) == 1]
    if single:
        found.append(f"One finished seed, so no interval{where}: {', '.join(single)}.")
    for row in rows:
        scores = row["scores"]
        if not scores:
            found.append(f"No score of {row['arm']}{where}: {row['failed']} failed, {row['absent']} to go.")
        elif len(scores) > 1 and len(set(scores.values())) == 1:
            found.append(
                f"All {len(scores)} seeds of {row['arm']} score exactly {percent(row['pass@1'])}%{where}: its interval has no "
                "width because nothing varied, not because nothing could."
            )
        gains = (
            {round(scores[seed] - base["scores"][seed], 12) for seed in scores.keys() & base["scores"].keys()} if base else set()
        )
        if base and row is not base and len(scores) > 1 and len(gains) == 1 and len(set(scores.values())) > 1:
            found.append(
                f"{row['arm']} gains exactly {points(gains.pop())} points over the base on every seed{where}: the interval of "
                "its gain has no width by chance, which is no certainty."
            )
        if base and scores and base["scores"] and scores.keys() - base["scores"].keys():
            alone = sorted(scores.keys() - base["scores"].keys())
            found.append(f"{row['arm']} has {said_seeds(alone)} without a base to compare to{where}; Δ leaves them out.")
    return found


def notices(comparison: Comparison, boards: Sequence[Board], tallies: Mapping[str, Tally]) -> list[str]:
    """A sentence each."""
    found = [notice for board in boards for notice in _of_board(board, len(boards) > 1)]
    found += [f"{run.id}: {note}." for run in comparison.runs for note in run.notes]
    found += [f"{run}: {one.problem}." for run, one in tallies.items() if one.problem]
    return found
