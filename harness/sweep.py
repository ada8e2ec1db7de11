"""Search: trials for every method, the best again on other seeds, and what they chose against the default on test problems.

A trial is runs like any other, in runs/, that differ from the default in options and seed. Each stage begins when the one
before it has ended for all methods; what is done is never done again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from harness import files, launch, models
from harness.comparison import RunConfig
from harness.errors import INTERRUPTED, RUNS_FAILED, BakeoffError
from harness.launch import Backend, Display, Outcome
from harness.search import DIRECTIONS, Search, tried
from harness.shard import Shard
from harness.space import written
from harness.study import Claim, StudyOf, answering, importances, now, open_storage

ATTEMPTS = 3  # at a run whose process was killed
BEST = 3  # trials that are run again
WAIT_SECONDS = 1.0  # for the trials of other processes
MEASURED = ("pass@1", "reward", "kl", "truncated")  # of the last evaluation on validation problems


class Sweep:
    """A search at work in a folder."""

    def __init__(self, search: Search, root: Path, storage: str | None, workers: int, backend: Backend):
        self.search, self.root, self.workers, self.backend = search, root, workers, backend
        self.defaults = search.defaults(root)
        folder = root / "studies" / search.name
        opened = open_storage(storage, folder)
        self.studies = {
            label: StudyOf(search, label, search.identity(run), opened, folder) for label, run in self.defaults.items()
        }
        self.folder = folder
        self.kept = root / "comparisons" / search.name

    def trials(self, show: Display) -> None:
        """Run trials until every method has as many as were asked for, whoever runs them."""
        self.ensure_models(show)
        each = 1 if self.search.pruner != "none" else len(self.search.seeds)
        while True:
            claims = list[Claim]()
            for study in self.studies.values():
                while len(claims) < max(1, self.workers // each) and (claim := study.claim()):
                    if self.possible(claim, show):
                        claims.append(claim)
            if claims:
                self.settle(claims, show)
            elif any(study.running() for study in self.studies.values()):
                time.sleep(WAIT_SECONDS)
            else:
                return

    def possible(self, claim: Claim, show: Display) -> bool:
        """Whether the method takes these values together; a trial of values that it refuses has failed."""
        try:
            self.runs(claim, self.search.seeds)
        except BakeoffError as error:
            show.say(self.tell(claim, TrialState.FAIL, (), str(error)))
            claim.held.__exit__(None, None, None)
            return False
        return True

    def settle(self, claims: Sequence[Claim], show: Display) -> None:
        """Run the trials to their end, all seeds at once, or seed by seed where a pruner is asked between them."""
        try:
            rounds = [[seed] for seed in self.search.seeds] if self.search.pruner != "none" else [list(self.search.seeds)]
            alive = list(claims)
            for i, seeds in enumerate(rounds, start=1):
                why = self.work([run for claim in alive for run in self.runs(claim, seeds)], show)
                for claim in list(alive):
                    if failed := [why[run.id] for run in self.runs(claim, self.search.seeds) if run.id in why]:
                        said = self.tell(claim, TrialState.FAIL, self.search.seeds[: i * len(seeds)], failed[0])
                    elif i == len(rounds):
                        said = self.tell(claim, TrialState.COMPLETE, self.search.seeds)
                    elif self.hopeless(claim, seeds[0], i - 1):
                        said = self.tell(claim, TrialState.PRUNED, self.search.seeds[:i])
                    else:
                        continue
                    show.say(said)
                    alive.remove(claim)
        finally:
            for claim in claims:
                claim.held.__exit__(None, None, None)

    def runs(self, claim: Claim, seeds: Sequence[int]) -> list[RunConfig]:
        return tried(self.defaults[claim.study.label], claim.drawn, seeds)

    def work(self, runs: Sequence[RunConfig], show: Display) -> dict[str, str]:
        """Run what is not done; why each has failed that has. A run whose process was killed is continued."""
        missing = [run for run in {run.id: run for run in runs}.values() if not launch.is_done(self.root, run)]
        why = dict[str, str]()
        for run in missing:
            files.write_json(self.root / "runs" / run.id / "config.json", asdict(run))
        for attempt in range(ATTEMPTS):
            if not missing:
                break
            outcome = Outcome()
            start = self.backend(missing, self.root, self.search.name, False)
            launch.work(missing, self.root, self.workers, start, show, outcome)
            if outcome.interrupted:
                raise BakeoffError("stopped; the same command continues", INTERRUPTED)
            again = [run for run in missing if run.id in outcome.killed and attempt < ATTEMPTS - 1]
            why |= {run.id: launch.reason(self.root / "runs" / run.id) for run in missing if run.id in outcome.failed}
            missing = again
        return {run_id: said for run_id, said in why.items() if not (self.root / "runs" / run_id / "DONE").exists()}

    def hopeless(self, claim: Claim, seed: int, i: int) -> bool:
        """Whether a pruner gives a trial up after its i-th seed: by the scores of problems, or by their mean."""
        folder = self.root / "runs" / self.runs(claim, [seed])[0].id
        objective = self.search.objectives[0]
        if self.search.pruner == "median":
            return claim.study.prune(claim, [measured(folder)[objective]], i)
        scores = problems(folder, objective)
        return claim.study.prune(claim, scores, i * len(scores))

    def tell(self, claim: Claim, state: TrialState, seeds: Sequence[int], why: str = "") -> str:
        """Book how a trial ended, and say so."""
        folders = {run.seed: self.root / "runs" / run.id for run in self.runs(claim, seeds)} if seeds else {}
        done = {seed: measured(folder) for seed, folder in folders.items() if (folder / "DONE").exists()}
        means = {name: sum(one[name] for one in done.values()) / len(done) for name in MEASURED} if done else {}
        values = [means[objective] for objective in self.search.objectives] if state == TrialState.COMPLETE else None
        over = {name: means[name] - cap for name, cap in self.search.constraints.caps().items() if means}
        spent = {name: sum(cost(folder)[name] for folder in folders.values()) for name in ("flops", "seconds")}
        found = {
            "ended": now(),
            "means": means,
            "seeds": {str(seed): one for seed, one in done.items()},
            "runs": [folder.name for folder in folders.values()],
            "why": why,
            **spent,
        }
        with claim.study.alone():
            claim.study.tell(claim, state, values, over, found)
            self.record()
        options = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in claim.drawn.items()
        )
        said = ", ".join(f"{objective} {means[objective]:.3f}" for objective in self.search.objectives) if means else why
        ended = sum(t.state.is_finished() for t in claim.study.trials())
        count, label = f"[{ended}/{self.search.trials}]", claim.study.label
        return f"{count} {label} trial {claim.number} {state.name.lower()}: {said} ({options})"

    # what came of it

    def rows(self) -> list[dict[str, Any]]:
        """A line a trial, in plain values."""
        return [self.row(label, trial) for label, study in self.studies.items() for trial in study.trials()]

    def row(self, label: str, trial: FrozenTrial) -> dict[str, Any]:
        found: dict[str, Any] = trial.user_attrs.get("found", {})
        caps = self.search.constraints.caps()
        return {
            "study": label,
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "options": trial.user_attrs.get("options", {}),
            "begun": trial.user_attrs.get("begun", []),
            "feasible": all(found.get("means", {}).get(name, cap + 1) <= cap for name, cap in caps.items()),
            **{key: found.get(key) for key in ("ended", "means", "seeds", "runs", "why", "flops", "seconds")},
        }

    def record(self) -> None:
        """Write the trials down for the report; whoever has `alone` to itself."""
        files.write(self.kept / "trials.jsonl", files.jsonl(self.rows()))

    def best(self, label: str) -> list[dict[str, Any]]:
        """The settings that have done best on the first objective, of two objectives those on the front that have."""
        first = self.search.objectives[0]
        kept = [row for row in self.rows() if row["study"] == label and row["state"] == "complete" and row["feasible"]]
        kept = (
            [row for row in kept if not any(self.beats(other["means"], row["means"]) for other in kept)]
            if len(self.search.objectives) > 1
            else kept
        )
        if not kept:
            raise BakeoffError(
                f"{label}: no trial ended within the constraints; why is in {self.kept / 'trials.jsonl'}", RUNS_FAILED
            )
        kept = sorted(kept, key=lambda row: (-row["means"][first], row["trial"]))
        settings: list[dict[str, Any]] = []
        for row in kept:
            if row["options"] not in [other["options"] for other in settings]:
                settings.append(row)
        return settings[:BEST]

    def beats(self, one: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether a trial is no worse in both objectives and better in one."""
        signs = {objective: 1 if DIRECTIONS[objective] == "maximize" else -1 for objective in self.search.objectives}
        gains = [sign * (one[objective] - other[objective]) for objective, sign in signs.items()]
        return min(gains) >= 0 and max(gains) > 0

    def confirm(self, show: Display) -> dict[str, dict[str, Any]]:
        """The best trials of each method on seeds that chose none of them, and the one that is best there.

        One that fails there, or goes beyond a cap, is not chosen. Raises BakeoffError for a method of which none is left.
        """
        best = {label: self.best(label) for label in self.studies}
        runs = {
            (label, row["trial"]): tried(self.defaults[label], row["options"], self.search.confirm_seeds)
            for label, rows in best.items()
            for row in rows
        }
        why = self.work([run for each in runs.values() for run in each], show)
        confirmed = dict[str, dict[str, Any]]()
        for label, rows in best.items():
            again = [self.confirmed(row, runs[label, row["trial"]], why) for row in rows]
            left = [one for one in again if not one["why"]]
            if not left:
                said = "; ".join(f"trial {one['trial']}: {one['why']}" for one in again)
                raise BakeoffError(f"{label}: none of the best holds on other seeds ({said}); ask for more --trials", RUNS_FAILED)
            chosen = max(left, key=lambda one: sum(one["seeds"].values()))
            confirmed[label] = {"again": again, "tuned": chosen["trial"], "options": chosen["options"]}
        return confirmed

    def confirmed(self, row: Mapping[str, Any], runs: Sequence[RunConfig], failed: Mapping[str, str]) -> dict[str, Any]:
        """What one of the best trials measured on other seeds, and why it cannot be chosen, if it cannot."""
        first = self.search.objectives[0]
        folders = {run.seed: self.root / "runs" / run.id for run in runs}
        done = {seed: measured(folder) for seed, folder in folders.items() if folder.name not in failed}
        over = [
            f"{name} is {mean:.3g}, the cap {cap:g}"
            for name, cap in self.search.constraints.caps().items()
            if done and (mean := sum(one[name] for one in done.values()) / len(done)) > cap
        ]
        return {
            "trial": row["trial"],
            "options": row["options"],
            "searched": row["means"][first],
            "seeds": {str(seed): one[first] for seed, one in done.items()},
            "why": "; ".join([*(failed[run.id] for run in runs if run.id in failed), *over]),
            **{name: sum(cost(folder)[name] for folder in folders.values()) for name in ("flops", "seconds")},
        }

    def report(self, confirmed: Mapping[str, dict[str, Any]], command: str) -> Outcome:
        """Default and tuned of each method as an ordinary comparison, on test problems and seeds that nothing was chosen on."""
        methods = dict[str, dict[str, Any]]()
        for label, found in confirmed.items():
            table = {"method": self.search.methods[label]["method"], **self.search.fixed(label)}
            methods[f"{label}-default"] = table
            methods[f"{label}-tuned"] = {**table, **found["options"]}
        summary = {
            "objectives": self.search.objectives,
            "constraints": self.search.constraints.caps(),
            "sampler": self.search.sampler,
            "pruner": self.search.pruner,
            "trials": self.search.trials,
            "seeds": self.search.seeds,
            "confirm_seeds": self.search.confirm_seeds,
            "studies": {label: self.summary(label, confirmed[label]) for label in self.studies},
        }
        files.write_json(self.kept / "search.json", summary)
        with next(iter(self.studies.values())).alone():
            self.record()
        comparison = self.search.comparison(self.search.name, methods, self.search.report_seeds, self.search.evaluation)
        source = files.toml({k: v for k, v in asdict(comparison).items() if k not in ("bases", "claims", "base_per_seed")})
        return launch.launch(comparison, self.root, source, command, self.workers, False, False, Shard(), self.backend)[1]

    def summary(self, label: str, found: Mapping[str, Any]) -> dict[str, Any]:
        ranges = self.search.ranges[label]
        return {
            "method": self.search.methods[label]["method"],
            "ranges": {name: written(range_) for name, range_ in ranges.items()},
            "default": {name: self.defaults[label].options[name] for name in ranges},
            "importances": importances(self.studies[label].study, ranges),
            **found,
        }

    def ensure_models(self, show: Display) -> None:
        """Pretrain what takes part and is not there."""
        runs = list(self.defaults.values())
        recipes = [
            models.presets().get(name) for run in runs for name in (run.model, *(run.options[other] for other in run.others))
        ]
        launch.ensure_bases([recipe for recipe in recipes if recipe], self.root, self.workers * self.search.threads, show)


def sweep(search: Search, root: Path, storage: str | None, workers: int, command: str, backend: Backend) -> Outcome:
    """Begin or continue a search, beside whoever else is at it, to its report."""
    with answering(storage):
        work = Sweep(search, root, storage, workers, backend)
        with launch.display() as show:
            ended = sum(t.state.is_finished() for study in work.studies.values() for t in study.trials())
            show.say(f"{search.name}: {ended} of {search.trials * len(work.studies)} trials done")
            work.trials(show)
        with files.lock(work.folder / "report.lock", "running the best trials again", patience=inf):
            with launch.display() as show:
                confirmed = work.confirm(show)
            return work.report(confirmed, command)


def measured(folder: Path) -> dict[str, float]:
    """The last evaluation of a run on validation problems."""
    last = [row for row in files.read_jsonl(folder / "metrics.jsonl") if "eval/pass@1" in row][-1]
    return {name: last[f"eval/{name}"] for name in MEASURED}


def problems(folder: Path, objective: str) -> list[float]:
    """Mean reward, or pass@1, of each validation problem in the last evaluation."""
    found = dict[str, list[float]]()
    for line in files.read_jsonl(max((folder / "evals").glob("[0-9]*-validation.jsonl"))):
        found.setdefault(line["problem"], []).append(line["reward"] if objective == "reward" else float(line["reward"] == 1.0))
    return [sum(tries) / len(tries) for tries in found.values()]


def cost(folder: Path) -> dict[str, float]:
    """What a run has taken so far, evaluation included in the seconds."""
    last = files.tail_jsonl(folder / "metrics.jsonl") or {}
    return {
        "flops": last.get("budget/flops", 0.0),
        "seconds": last.get("budget/seconds", 0.0) + last.get("budget/eval_seconds", 0.0),
    }
