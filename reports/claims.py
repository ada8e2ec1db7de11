"""Claims: what a comparison is asked to decide, written down before it runs, and the verdict on each.

    [claims.verifier]
    text = "RL with a verifier raises pass@1 over its start"
    source = "DeepSeekMath, table 5"
    parts = [{ arm = "grpo", against = "base", above = 0.02 }]

A part is a statistic (reports/evidence.py) with one value a seed, and a margin m. Its Student-t interval over seeds decides, at
the confidence that Holm's procedure gives it among all parts of the comparison's claims:

    above = m     PASS if the interval lies above m, FAIL if it lies below m
    below = m     the reverse
    within = m    PASS if it lies inside ±m, FAIL if it lies outside ±m

and INCONCLUSIVE otherwise. A claim is what its parts are together: FAIL if one fails, PASS if all pass. It is NOT TESTABLE, with
the reason, if a precondition (`requires`) fails, or where a part has no interval.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from pydantic import ConfigDict

from harness.errors import BakeoffError, meant
from harness.parse import validated
from harness.register import digest
from reports.evidence import NotTestable, Statistic, statistic, unfinished
from reports.finding import ENOUGH_SEEDS
from reports.load import Comparison
from reports.stats import Interval, holm_confidence, t_interval, t_test

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "NOT TESTABLE"]

STRICT = ConfigDict(extra="forbid")
SAMPLED = ("test/", "eval/", "ood/", "other/")
VERDICT_SEEDS = 8  # from which a verdict stands without a remark on their number


@dataclass(frozen=True, kw_only=True)
class Part:
    """One statistic and where it must lie. An arm is LABEL, LABEL@MODEL, LABEL/TASK or LABEL@MODEL/TASK."""

    __pydantic_config__ = STRICT

    statistic: Statistic = "difference"
    metric: str = "test/pass@1"  # a column of metrics.jsonl, base/…, drafts/…, or one divided by another with " / "
    arm: str | tuple[str, ...]
    against: str | tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    within: float | None = None
    what: str = ""  # in words, for the report

    def __post_init__(self) -> None:
        if sum(bound is not None for bound in (self.above, self.below, self.within)) != 1:
            raise ValueError("needs exactly one of above, below and within")
        if self.within is not None and not self.within > 0:
            raise ValueError("within must be greater than 0")

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,) if isinstance(self.arm, str) else self.arm

    @property
    def others(self) -> tuple[str, ...]:
        return (self.against,) if isinstance(self.against, str) else self.against

    @property
    def margin(self) -> str:
        name = next(name for name in ("above", "below", "within") if getattr(self, name) is not None)
        return f"{name} {'±' if name == 'within' else ''}{getattr(self, name):g}"

    @property
    def name(self) -> str:
        """The statistic in words."""
        if self.what:
            return self.what
        arms, others = " and ".join(self.arms), " and ".join(self.others)
        return f"{self.metric}: {self.statistic} of {arms}" + (f" against {others}" if others else "")

    def level(self, values: Sequence[float]) -> float:
        """Two-sided p of the nearest margin: what Holm orders the parts by."""
        if self.within is not None:
            return max(t_test(values, self.within), t_test(values, -self.within))
        return t_test(values, self.above if self.above is not None else self.below or 0.0)

    def outcome(self, found: Interval) -> Outcome:
        if not isfinite(found.low):
            return "NOT TESTABLE"
        if self.within is not None:
            inside = -self.within < found.low and found.high < self.within
            outside = found.low > self.within or found.high < -self.within
            return "PASS" if inside else "FAIL" if outside else "INCONCLUSIVE"
        over, under = (self.above, self.below)
        if over is not None:
            return "PASS" if found.low > over else "FAIL" if found.high < over else "INCONCLUSIVE"
        assert under is not None
        return "PASS" if found.high < under else "FAIL" if found.low > under else "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What must hold, on the mean over seeds, for a claim to be testable."""

    __pydantic_config__ = STRICT

    metric: str
    arm: str
    above: float | None = None
    below: float | None = None
    because: str  # what a reader is told where it does not hold

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError("needs one of above and below")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence, its source, and the parts that decide it."""

    __pydantic_config__ = STRICT

    text: str
    source: str
    parts: tuple[Part, ...]
    requires: tuple[Requirement, ...] = ()
    number: int | None = None  # among the papers' twelve (docs/results.md, Claims)
    caveat: str = ""  # said with every verdict

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: needs at least one")


@dataclass(frozen=True)
class Finding:
    """A part, its interval, at which confidence, and what follows."""

    name: str
    interval: Interval
    margin: str
    confidence: float
    outcome: Outcome


@dataclass(frozen=True)
class Verdict:
    claim: str
    text: str
    source: str
    verdict: Outcome
    reason: str
    parts: tuple[Finding, ...] = ()
    number: int | None = None
    registered: str = ""  # whether it was written down before it could be known
    note: str = ""  # what is said with it beside the parts

    @property
    def margin(self) -> str:
        return "; ".join(part.margin for part in self.parts)


def read(tables: Mapping[str, Any], where: str, arms: Collection[str] | None = None) -> dict[str, Claim]:
    """The claims of a comparison's file. Raises BakeoffError naming the field for one that is none, or is not on `arms`."""
    claims = {name: validated(Claim, table, f"{where}: claims.{name}") for name, table in tables.items()}
    for name, claim in claims.items():
        for part in claim.parts:
            for selector in (*part.arms, *part.others):
                label = re.split("[@/]", selector)[0]
                if arms is not None and label not in arms:
                    raise BakeoffError(f"{where}: claims.{name}: no arm {label!r}{meant(label, arms)}")
    return claims


def verdicts(comparison: Comparison) -> list[Verdict]:
    """The verdict on every claim of the comparison, in their order."""
    claims = read(comparison.asked.get("claims", {}), comparison.name)
    measured: dict[tuple[str, int], list[float]] = {}
    missing: dict[str, str] = {}
    for name, claim in claims.items():
        try:
            for requirement in claim.requires:
                _require(comparison, requirement)
            for i, part in enumerate(claim.parts):
                values = statistic(comparison, part.statistic, part.metric, part.arms, part.others)
                if len(values) < 2:
                    raise NotTestable(f"{part.name}: {len(values)} finished seed{'s' * (len(values) != 1)}, an interval needs 2")
                measured[name, i] = [values[seed] for seed in sorted(values)]
        except NotTestable as error:
            missing[name] = str(error)
    tested = [key for key in measured if key[0] not in missing]
    levels = holm_confidence([claims[name].parts[i].level(measured[name, i]) for name, i in tested])
    confidence = dict(zip(tested, levels, strict=True))
    registered = registration(comparison)
    return [
        Verdict(name, claim.text, claim.source, "NOT TESTABLE", missing[name], (), claim.number, registered)
        if name in missing
        else _verdict(
            name,
            claim,
            [(measured[name, i], confidence[name, i]) for i in range(len(claim.parts))],
            registered,
            unfinished(comparison, [arm for part in claim.parts for arm in (*part.arms, *part.others)]),
        )
        for name, claim in claims.items()
    ]


def _require(comparison: Comparison, requirement: Requirement) -> None:
    values = statistic(comparison, "value", requirement.metric, (requirement.arm,), ())
    if not values:
        raise NotTestable(f"{requirement.arm} has no finished run with {requirement.metric}")
    mean = sum(values.values()) / len(values)
    low, high = requirement.above, requirement.below
    if (low is not None and not mean > low) or (high is not None and not mean < high):
        bound = f"above {low:g}" if low is not None else f"below {high:g}"
        raise NotTestable(f"{requirement.because}: {requirement.metric} of {requirement.arm} is {mean:.3g}, must be {bound}")


def _verdict(name: str, claim: Claim, measured: list[tuple[list[float], float]], registered: str, lost: int) -> Verdict:
    findings: list[Finding] = []
    for part, (values, confidence) in zip(claim.parts, measured, strict=True):
        interval = t_interval(values, confidence)
        findings.append(Finding(part.name, interval, part.margin, confidence, part.outcome(interval)))
    outcomes = {finding.outcome for finding in findings}
    verdict: Outcome = "FAIL" if "FAIL" in outcomes else "PASS" if outcomes == {"PASS"} else "INCONCLUSIVE"
    seeds = min(finding.interval.n for finding in findings)
    notes: list[str] = []
    if seeds < VERDICT_SEEDS:
        notes.append(f"preliminary: {seeds} seeds" if seeds < ENOUGH_SEEDS else f"{seeds} seeds, fewer than {VERDICT_SEEDS}")
    if lost:
        notes.append(f"{lost} run{'s' * (lost != 1)} of its arms failed or {'are' if lost != 1 else 'is'} to go, and left out")
    scores = [f.interval for f, part in zip(findings, claim.parts, strict=True) if part.metric.startswith(SAMPLED)]
    if any(interval.low == interval.high for interval in scores):
        notes.append("no spread over seeds: an interval without width is not certainty")
    note = "; ".join([*notes, *([claim.caveat] if claim.caveat else [])])
    reason = "; ".join([*(said(finding) for finding in findings if finding.outcome == verdict), *([note] if note else [])])
    return Verdict(name, claim.text, claim.source, verdict, reason, tuple(findings), claim.number, registered, note)


def said(finding: Finding) -> str:
    """A finding in one line."""
    i = finding.interval
    return (
        f"{finding.name}: {i.mean:+.4g} ({finding.confidence:.1%} interval {i.low:+.4g} to {i.high:+.4g}, {i.n} seeds), "
        f"asked {finding.margin}"
    )


def registration(comparison: Comparison) -> str:
    """Whether the claims stood before the first run was finished, by the comparison's claims.jsonl."""
    mine = digest(comparison.asked)
    for row in comparison.registered:
        if row.get("digest") == mine:
            finished = int(row.get("finished", 0))
            return "written down before any run" if not finished else f"written down after {finished} runs"
    return "not written down before the runs"
