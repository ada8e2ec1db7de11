"""Process against outcome: whether the reasoning holds beside whether the answer does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.data import Data, data
from reports.load import HEADLINE, Run, by_seed
from reports.numbers import span
from reports.stats import Interval, paired, t_interval
from reports.tally import Kind, Tally

MEASURES = {
    "pass@1": HEADLINE,
    "trace": "test/trace",
    "thinks": "test/thinks",
    "rechecks": "test/rechecks",
    "mixed": "test/mixed",
}
LUCKY: Kind = (True, False)  # right, and the reasoning is not
VAIN: Kind = (False, True)  # wrong, and the reasoning is valid


@dataclass(frozen=True)
class Row:
    """An arm: each measure over its seeds, and its change from the base on the same seeds."""

    label: str
    spreads: Mapping[str, Interval]
    deltas: Mapping[str, Interval]
    lucky: float  # of the right completions whose reasoning was judged, those in which it is not valid; nan where none was
    vain: float  # of the wrong ones, those in which it is valid


@dataclass(frozen=True)
class Process:
    rows: tuple[Row, ...]
    measures: tuple[str, ...]
    caption: str
    data: Data

    @property
    def apart(self) -> list[str]:
        """Arms whose answers distinguishably improve on the base's while their reasoning gets distinguishably worse."""
        return [row.label for row in self.rows if row.deltas["pass@1"].low > 0 and row.deltas["trace"].high < 0]


def _share(counts: Counter[Kind], wanted: Kind) -> float:
    judged = counts[wanted[0], True] + counts[wanted[0], False]
    return counts[wanted] / judged if judged else float("nan")


def process(runs: Sequence[Run], tallies: Mapping[str, Tally]) -> Process | None:
    """A row an arm; None where no run recorded whether its reasoning holds, or whether there is any."""
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if run.done:
            arms.setdefault(run.label, []).append(run)
    known = tuple(name for name, column in MEASURES.items() if any(by_seed(found, column) for found in arms.values()))
    if not set(known) - {"pass@1"}:
        return None
    base = next((found for found in arms.values() if found[0].method == "base"), [])
    rows: list[Row] = []
    for label, found in arms.items():
        traces = sum((tallies[run.id].traces for run in found if run.id in tallies), Counter[Kind]())
        spreads = {name: t_interval(by_seed(found, column).values()) for name, column in MEASURES.items()}
        deltas = {
            name: t_interval([]) if found is base else paired(by_seed(found, column), by_seed(base, column))
            for name, column in MEASURES.items()
        }
        rows.append(Row(label, spreads, deltas, _share(traces, LUCKY), _share(traces, VAIN)))
    caption = (
        f"Means over {span([len(found) for found in arms.values()], 'finished seed')}, ± half of the 95% t interval over seeds. "
        "Below: the change from the base on the same seeds, bold where its 95% paired t interval leaves 0 out. Valid trace: of "
        "completions that reason, those whose reasoning holds by rule; right anyway: of the right answers whose reasoning was "
        "judged, those in which it does not hold; wrong anyway: of the wrong ones, those in which it does. Mixed: completions "
        "that change their language on the way; re-checks: steps gone over again, a completion."
    )
    columns = ("arm", "measure", "mean", "low", "high", "seeds", "change", "change_low", "change_high")
    listed = [
        (row.label, name, i.mean, i.low, i.high, i.n, d.mean, d.low, d.high)
        for row in rows
        for name, i, d in ((name, row.spreads[name], row.deltas[name]) for name in known)
    ]
    return Process(tuple(rows), known, caption, data("process-and-outcome", columns, listed))
