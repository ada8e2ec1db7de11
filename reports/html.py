"""One self-contained page from run directories. The same directories give the same bytes."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports import escape, numbers, provenance
from reports.aggregate import aggregates
from reports.architectures import architectures
from reports.claims import Verdict, verdicts
from reports.cost import Cost, costs
from reports.curves import Panel, frontier, panels
from reports.data import Data, data
from reports.errors import Errors, errors
from reports.finding import ENOUGH_SEEDS, finding
from reports.health import Health, health
from reports.heat import legend
from reports.intervals import Ranking, ranking
from reports.leaderboard import Board, leaderboards, records
from reports.lengths import Lengths, lengths
from reports.load import Comparison, Run, load
from reports.looks import Look, looks
from reports.maps import maps
from reports.notices import notices
from reports.process import Process, process
from reports.quantities import AXES
from reports.samples import FILTERS, Samples, samples
from reports.search import said, search
from reports.significance import Matrix, significance
from reports.stock import stock
from reports.tally import Tally, tally
from reports.tries import tries

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """All there is to show for one task and one model."""

    id: str
    board: Board
    runs: tuple[Run, ...]
    finding: str
    ranking: Ranking | None
    panels: list[Panel]
    frontier: Panel | None
    tries: list[Panel]
    cost: Cost | None
    significance: Matrix | None
    lengths: Lengths | None
    samples: Samples | None
    errors: Errors | None
    process: Process | None
    health: Health | None

    @property
    def rows(self) -> list[dict[str, object]]:
        return [{str(key): value for key, value in row.items()} for row in self.board.frame.to_dict("records")]

    @property
    def staged(self) -> bool:
        """Whether some arm starts from another."""
        return bool(self.board.frame["ancestors_flops"].notna().any())

    @property
    def forgets(self) -> bool:
        """Whether other tasks were asked too."""
        return bool(self.board.frame["forgetting"].notna().any())

    @property
    def seeds(self) -> str:
        """`5 finished seeds`, of the arms that have any."""
        return numbers.span([len(row["scores"]) for row in self.board.frame.to_dict("records") if row["scores"]], "finished seed")

    @property
    def asked(self) -> str:
        """`400 problems × 2 samples, 5 finished seeds`"""
        told = [run.config.get("evaluation", {}) for run in self.runs if run.done]
        sizes = [[t[name] for t in told if name in t] for name in (f"{self.board.split}_problems", f"{self.board.split}_samples")]
        of = [numbers.span(found, what) for found, what in zip(sizes, ("problem", "sample"), strict=True) if found]
        return ", ".join([" × ".join(of), self.seeds] if of else [self.seeds])

    @property
    def scores(self) -> Data:
        """Every seed's score."""
        rows = [(row["arm"], seed, score) for row in self.board.frame.to_dict("records") for seed, score in row["scores"].items()]
        return data("scores", ("arm", "seed", "pass@1"), rows)

    @property
    def data(self) -> Data:
        """The leaderboard, without columns of which nothing is known."""
        rows = [{k: v for k, v in row.items() if k != "scores"} | {"seeds": _seeds(row)} for row in records(self.board.frame)]
        known = [key for key in rows[0] if any(row[key] is not None for row in rows)]
        return data("leaderboard", known, [[row[key] for key in known] for row in rows])


def _seeds(row: dict[str, Any]) -> str:
    return " ".join(f"{seed}:{score:.6g}" for seed, score in row["scores"].items())


def _section(number: int, board: Board, comparison: Comparison, drawn: dict[str, Look], tallies: dict[str, Tally]) -> Section:
    runs = comparison.of(board.task, board.model)
    return Section(
        f"s{number}",
        board,
        runs,
        finding([board]),
        ranking(board.frame, drawn),
        panels(runs, drawn),
        frontier(runs, drawn),
        tries(runs, tallies, drawn),
        costs(board.frame, runs, drawn),
        significance(board.frame),
        lengths(runs, tallies, drawn),
        samples(runs),
        errors(runs, tallies),
        process(runs, tallies),
        health(runs),
    )


def _decided(claims: list[Verdict]) -> Data:
    columns = ("claim", "text", "source", "verdict", "reason", "part", "mean", "low", "high", "seeds", "confidence", "margin")
    rows: list[list[str | float | None]] = []
    for one in claims:
        said = [one.claim, one.text, one.source, one.verdict, one.reason]
        found = [
            [p.name, p.interval.mean, p.interval.low, p.interval.high, p.interval.n, p.confidence, p.margin] for p in one.parts
        ]
        rows += [[*said, *part] for part in found or [[None] * 7]]
    return data("claims", columns, rows)


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


@lru_cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=escape.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "percent": numbers.percent,
        "points": numbers.points,
        "si": numbers.si,
        "tick": numbers.tick,
        "count": numbers.count,
        "whole": numbers.whole,
        "nats": numbers.nats,
        "times": numbers.times,
        "number": lambda value, how: {"percent": numbers.percent, "nats": numbers.nats, "more_nats": numbers.more_nats}[how](
            value
        ),
        "pieces": escape.pieces,
        "gain": said,
        "sortable": lambda value: f"{value:.6g}" if isfinite(value) else "",
    }
    made.filters.update(filters)
    return made


def render(root: Path | str, name: str) -> str:
    """The report of the comparison `name` under `root`, as one HTML page."""
    comparison = load(root, name)
    claims = verdicts(comparison)
    boards = leaderboards(comparison)
    drawn = looks(comparison)
    tallies = {run.id: tally(run) for run in comparison.runs if run.done}
    style, script = ((HERE / file).read_text(encoding="utf-8") for file in ("style.css", "script.js"))
    page = _environment().get_template("template.html.j2")
    return page.render(
        comparison=comparison,
        counts={status: comparison.count(status) for status in ("done", "failed", "unfinished", "missing")},
        finding=finding(boards),
        sections=[_section(number, board, comparison, drawn, tallies) for number, board in enumerate(boards)],
        maps=maps(comparison, boards),
        aggregates=aggregates(comparison, boards, drawn),
        notices=notices(comparison, boards, tallies),
        architectures=architectures(comparison, boards),
        legend=legend(),
        setups=provenance.setups(comparison),
        looks=drawn,
        axes=AXES,
        filters=FILTERS,
        enough=ENOUGH_SEEDS,
        troubled=[run for run in comparison.runs if not run.done],
        environment=provenance.environment(comparison.runs),
        commands=provenance.commands(comparison),
        again=[(run.id, provenance.redo(comparison, run)) for run in comparison.runs],
        stock=stock(comparison),
        searched=search(Path(root) / "comparisons" / name, comparison),
        claims=claims,
        claims_data=_decided(claims),
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def write(root: Path | str, name: str, output: Path | str | None = None) -> Path:
    """Render and write in one move, so that the file is the old report or the new one, never half of one."""
    page = render(root, name)
    path = Path(output) if output is not None else Path(root) / "comparisons" / name / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
