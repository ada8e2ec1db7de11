"""Studies in Optuna: who takes which trial, and what came of it.

<root>/studies/<name>/
  journal.log          the trials of all methods, unless --storage names a database
  id                   a random name: a study in a database belongs to one folder of runs
  claims.lock          held while a trial is taken or told
  <label>-00007.lock   held by the process that is at this trial; where it dies, whoever comes takes the trial up again
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from harness import files
from harness.errors import MISSING, BakeoffError
from harness.search import DIRECTIONS, Search, grid
from harness.space import Range, Value

CLAIM_SECONDS = 600.0  # how long another process may be at taking or telling a trial
SERVER_SECONDS = 20.0  # how long a gRPC proxy may take to answer

optuna.logging.set_verbosity(optuna.logging.WARNING)


class JournalFile(JournalFileBackend):
    """Optuna's journal, appended to under a lock that ends with its holder; half a line that a kill has left is cut off first."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(str(path))
        self.append_logs([])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self.path.open("a+b") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            end = f.seek(0, os.SEEK_END)
            f.seek(max(0, end - 1))
            if f.read() not in (b"", b"\n"):
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)
            f.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())
            f.flush()
            os.fsync(f.fileno())


class Keyed(BaseSampler):
    """Another sampler whose random numbers are those of the trial: a search that was interrupted goes on as it would have."""

    def __init__(self, make: Callable[[int], BaseSampler], key: str):
        self.make, self.key = make, key
        self._made: tuple[int, BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if self._made is None or self._made[0] != trial.number:
            digest = hashlib.sha256(f"{self.key}/{trial.number}".encode()).digest()
            with quiet():
                self._made = trial.number, self.make(int.from_bytes(digest[:4], "little"))
        return self._made[1]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        with quiet():
            return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


@contextmanager
def quiet() -> Generator[None]:
    """Optuna warns of what is experimental, of what a trial says again that was taken up, and of PED-ANOVA's low values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings(
            "ignore", message="The constraint value is ignored|The reported value is ignored|PedAnovaImportanceEvaluator computes"
        )
        yield


def sampler(search: Search, label: str) -> BaseSampler:
    key = f"{search.name}/{label}"
    once = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    makers: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed),
        "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda seed: RandomSampler(seed=seed),
        "qmc": lambda _: QMCSampler(seed=once, scramble=True, warn_independent_sampling=False),
        "nsga2": lambda seed: NSGAIISampler(seed=seed),
        "grid": lambda _: GridSampler(grid(search.ranges[label], search.trials), seed=once),
    }
    return Keyed(makers[search.sampler], key)


def pruner(search: Search) -> BasePruner:
    with quiet():
        return {"none": NopPruner, "wilcoxon": WilcoxonPruner, "median": MedianPruner}[search.pruner]()


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The journal of the study's folder, or what `url` names: sqlite:///FILE, postgresql://USER@HOST/NAME, grpc://HOST:PORT.

    Raises BakeoffError for one that is not there or cannot be read.
    """
    if url is None:
        return JournalStorage(JournalFile(folder / "journal.log"))
    shown = said(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 13000
    except ValueError as error:
        raise BakeoffError(f"{shown}: not a URL of a database: {error}") from None
    if parts.scheme == "grpc":
        return proxied(host, port)
    driver = re.sub("^postgresql:", "postgresql+psycopg:", url)
    try:
        with alone(folder):  # two at once would make the same tables
            return RDBStorage(driver)
    except (ImportError, NoSuchModuleError) as error:
        missing = getattr(error.__cause__ or error, "name", None)
        if missing:
            extra = "'bakeoff[postgresql]'" if missing == "psycopg" else "what brings it"
            raise BakeoffError(f"{shown}: needs {missing}; pip install {extra}", MISSING) from None
        raise BakeoffError(f"{shown}: no such kind of database; there is sqlite, postgresql and grpc") from None
    except (ArgumentError, ValueError) as error:
        raise BakeoffError(f"{shown}: not a URL of a database: {error}") from None
    except (SQLAlchemyError, RuntimeError) as error:
        raise BakeoffError(f"{shown}: cannot be opened: {getattr(error, 'orig', error)}", MISSING) from None


def said(url: str) -> str:
    """The option, without a password."""
    return f"--storage {re.sub('//[^/]*@', '//', url)}"


@contextmanager
def answering(url: str | None) -> Generator[None]:
    """Raises BakeoffError where a storage that was opened does not answer any more, or cannot be written."""
    try:
        yield
    except Exception as error:
        lost = isinstance(error, (StorageInternalError, SQLAlchemyError)) or type(error).__module__.startswith("grpc")
        if url is None or not lost:
            raise
        why = str(error.__cause__ or error).strip().split("\n")[0]
        raise BakeoffError(f"{said(url)}: does not answer as it should: {why}; the same command continues", MISSING) from None


def alone(folder: Path) -> AbstractContextManager[None]:
    """One process at a time at the studies of a folder."""
    return files.lock(folder / "claims.lock", "taking a trial", patience=CLAIM_SECONDS)


def proxied(host: str, port: int) -> BaseStorage:
    from optuna.storages import GrpcStorageProxy

    shown = f"--storage grpc://{host}:{port}"
    try:
        with quiet():
            storage = GrpcStorageProxy(host=host, port=port)
        storage.wait_server_ready(timeout=SERVER_SECONDS)
    except ImportError as error:
        raise BakeoffError(f"{shown}: needs {error.name}; pip install 'bakeoff[grpc]'", MISSING) from None
    except ConnectionError:
        raise BakeoffError(f"{shown}: nobody answers", MISSING) from None
    return storage


@dataclass
class Claim:
    """A trial that this process holds: its number, the values of its options, and Optuna's handle on it."""

    study: StudyOf
    number: int
    drawn: dict[str, Value]
    trial: Trial
    held: AbstractContextManager[None]


class StudyOf:
    """The trials of one method."""

    def __init__(self, search: Search, label: str, identity: Mapping[str, Any], storage: BaseStorage, folder: Path):
        self.search, self.label, self.folder = search, label, folder
        self.ranges: Mapping[str, Range] = search.ranges[label]
        with self.alone():
            self.study = self._open({**identity, "folder": folder_id(folder)}, storage)

    def _open(self, identity: Mapping[str, Any], storage: BaseStorage) -> Study:
        """Made, or found again. Raises BakeoffError, nothing changed, where one of this name is another."""
        name = f"{self.search.name}/{self.label}"
        asked: dict[str, Any] = json.loads(json.dumps(identity))
        drawing, pruning = sampler(self.search, self.label), pruner(self.search)
        if exists(name, storage):
            study = optuna.load_study(study_name=name, storage=storage, sampler=drawing, pruner=pruning)
            was = study.user_attrs.get("identity")
            if was is None and study.get_trials(deepcopy=False):
                raise BakeoffError(f"study {name}: has trials that are not bakeoff's; give the search another name")
            if was is not None and (different := sorted(k for k in was | asked if was.get(k) != asked.get(k))):
                raise BakeoffError(f"study {name}: {saying(different, was, asked)}; give the search another name")
        else:
            directions: list[StudyDirection | Literal["maximize", "minimize"]] = [DIRECTIONS[o] for o in self.search.objectives]
            study = optuna.create_study(study_name=name, storage=storage, directions=directions, sampler=drawing, pruner=pruning)
        if "identity" not in study.user_attrs:
            study.set_user_attr("identity", asked)
            with quiet():
                study.set_metric_names(list(self.search.objectives))
        return study

    def alone(self) -> AbstractContextManager[None]:
        return alone(self.folder)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def claim(self) -> Claim | None:
        """A trial whose process has died, or a new one while fewer than asked have begun; None where there is neither."""
        with self.alone():
            begun = [t for t in self.trials() if t.state != TrialState.WAITING]
            for frozen in begun:
                if frozen.state == TrialState.RUNNING and (held := self._hold(frozen.number)):
                    return self._claimed(Trial(self.study, frozen._trial_id), held)  # pyright: ignore[reportPrivateUsage]
            if len(begun) >= self.search.trials:
                return None
            trial = self.study.ask()
            held = self._hold(trial.number)
            assert held
            return self._claimed(trial, held)

    def _hold(self, number: int) -> AbstractContextManager[None] | None:
        lock = files.lock(self.folder / f"{self.label}-{number:05d}.lock", "at this trial")
        try:
            lock.__enter__()
        except BakeoffError:
            return None
        return lock

    def _claimed(self, trial: Trial, held: AbstractContextManager[None]) -> Claim:
        drawn = {name: range_.suggest(trial, name) for name, range_ in self.ranges.items()}
        trial.set_user_attr("options", drawn)
        trial.set_user_attr("begun", [*trial.user_attrs.get("begun", []), now()])
        return Claim(self, trial.number, drawn, trial, held)

    def running(self) -> bool:
        return any(t.state == TrialState.RUNNING for t in self.trials())

    def prune(self, claim: Claim, scores: Sequence[float], step: int) -> bool:
        """Whether a trial with these scores so far, the last of them from `step` on, is not worth another seed."""
        with quiet():
            for i, score in enumerate(scores):
                claim.trial.report(score, step + i)
            return claim.trial.should_prune()

    def tell(self, claim: Claim, state: TrialState, values: list[float] | None, over: Mapping[str, float], found: Any) -> None:
        """The end of a trial; `over` says by how much each cap is exceeded, at most 0 where it is not."""
        claim.trial.set_user_attr("found", found)
        with quiet():
            for name, excess in over.items():
                claim.trial.set_constraint(name, excess)
            self.study.tell(claim.number, values, state)


def exists(study: str, storage: BaseStorage) -> bool:
    try:
        storage.get_study_id_from_name(study)
    except KeyError:
        return False
    return True


def saying(different: Sequence[str], was: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What differs between a study and what is asked of it."""
    if list(different) == ["folder"]:
        return "its runs are in another folder; share one --root between all who work on it"
    if "search" in was and "search" in different:
        return f"searches {json.dumps(was['search'])}, not {json.dumps(asked['search'])}"
    return f"was begun with another {', '.join(different)}"


def folder_id(folder: Path) -> str:
    path = folder / "id"
    if not path.exists():
        files.write(path, f"{uuid.uuid4().hex}\n")
    return path.read_text(encoding="utf-8").strip()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def importances(study: Study, ranges: Mapping[str, Range]) -> dict[str, dict[str, float]]:
    """How much of the spread of the first objective each option explains, by two estimators; nothing for fewer than 30 trials."""
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE and t.values]
    if len(complete) < FEWEST or len({t.values[0] for t in complete}) < 2:
        return {}
    names = {range_.drawn_as(name): name for name, range_ in ranges.items()}
    found = dict[str, dict[str, float]]()
    for said, evaluator in (("PED-ANOVA", PedAnovaImportanceEvaluator()), ("fANOVA", FanovaImportanceEvaluator(seed=0))):
        with quiet():
            shares = get_param_importances(study, evaluator=evaluator, target=lambda t: -t.values[0])  # low is good
        found[said] = {names[drawn]: share for drawn, share in shares.items()}
    return found


FEWEST = 30  # trials, for importances
