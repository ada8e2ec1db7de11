"""lm-eval over the project's own sampler, and the project's tasks for lm-eval.

A policy answers lm-eval through `harness.generate` and `Policy.logits`, the path of training and evaluation, so that a score of
lm-eval and one of `harness.evaluate` are of the same completions. lm-eval is imported here and nowhere else: it is an extra.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from statistics import stdev
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_MAX_LENGTH, DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness import files, models, plugins
from harness.comparison import RunConfig, resolve_device
from harness.errors import MISSING, BakeoffError, meant
from harness.generate import decoded, generate
from harness.method import padded
from harness.parse import validated
from harness.policy import Policy, taken
from harness.task import Task

RESULTS = "lm_eval.json"
LOGITS = 2**28  # held at once
NARROWING = {"top_k", "top_p", "min_p"}  # what no greedy decoding notices


class Completion(str):
    """A text that remembers whether it ended by itself. lm-eval knows texts alone, and one that was cut off has no answer."""

    ended = True


class Sampler(TemplateLM):
    """A policy as lm-eval sees a model."""

    def __init__(self, policy: Policy, tokenizer: Any):
        super().__init__()
        self.policy, self.tokenizer = policy, tokenizer
        config = policy.model.config.get_text_config()
        self.max_length: int = getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the tokenizer does by itself, which is how the project's prompts are read."""
        return self.tokenizer(string, add_special_tokens=add_special_tokens is not False)["input_ids"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Completions, greedy or at temperature 1, in the order of the requests, each cut off before its first stop sequence.

        Raises BakeoffError for another way to sample, and for a limit that leaves no room for a prompt.
        """
        alike = defaultdict[tuple[int, bool], list[int]](list)  # requests that can be decoded together
        stops, keys, seen = list[list[str]](), list[str](), Counter[str]()
        for i, request in enumerate(requests):
            context, kwargs = cast(tuple[str, dict[str, Any]], request.args)
            limit, sampled, until = self._settings(request.task_name, kwargs)
            alike[limit, sampled].append(i)
            stops.append(until)
            keys.append(f"lm-eval/{context}/{seen[context]}")
            seen[context] += 1
        out = dict[int, Completion]()
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        for (limit, sampled), rows in alike.items():
            prompts = [self._prompt(str(requests[i].args[0]))[limit - self.max_length :] for i in rows]
            y = generate(self.policy, prompts, 1, [keys[i] for i in rows] if sampled else None, limit, eos, pad)
            for i, tokens, ended in zip(rows, y.tokens, y.ended, strict=True):
                out[i] = self._completion(tokens, ended, stops[i])
        return [out[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Σ log π of whole texts, in windows of the model's length that overlap by one token."""
        out = list[float]()
        for request in requests:
            tokens = self.tok_encode(str(request.args[0]), add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            out.append(sum(logp for logp, _ in self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)))
        return out

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Of each (texts, context, continuation): Σ log π of the continuation, and whether every token of it is the likeliest."""
        pairs = [self._fitted(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        out = dict[int, tuple[float, bool]]()
        with self.policy.sampling():
            while order:
                width = sum(map(len, pairs[order[0]]))
                rows = max(1, LOGITS // (width * len(self.tokenizer)))
                part, order = order[:rows], order[rows:]
                contexts, continuations = zip(*(pairs[i] for i in part), strict=True)
                batch = padded(contexts, continuations, self.tokenizer.pad_token_id).to(self.policy.device)
                logits_BTV = self.policy.logits(batch.tokens_BT)
                logp_B = (taken(logits_BTV, batch.tokens_BT) * batch.mask_BT).sum(-1)
                greedy_B = ((logits_BTV.argmax(-1) == batch.tokens_BT) | (batch.mask_BT == 0)).all(-1)
                out |= dict(zip(part, zip(logp_B.tolist(), greedy_B.tolist(), strict=True), strict=True))
        return [out[i] for i in range(len(pairs))]

    def _settings(self, task: str | None, kwargs: dict[str, Any]) -> tuple[int, bool, list[str]]:
        """(tokens at most, sampled at temperature 1 or greedy, stop sequences) of a task's generation_kwargs."""
        asked: dict[str, Any] = dict(normalize_gen_kwargs(kwargs))
        limit, until, sampled = (asked.pop(k) for k in ("max_gen_toks", "until", "do_sample"))
        temperature = asked.pop("temperature", 1.0)
        odd = asked if sampled else {k: v for k, v in asked.items() if k not in NARROWING}
        if sampled and temperature != 1.0:
            odd = {"temperature": temperature, **odd}
        if odd:
            said = ", ".join(f"{k} = {v}" for k, v in odd.items())
            raise BakeoffError(f"{task}: generation_kwargs asks for {said}; completions are greedy or sampled at temperature 1")
        if limit >= self.max_length:
            raise BakeoffError(
                f"{task}: max_gen_toks = {limit} leaves no room for a prompt in the model's {self.max_length} tokens; "
                "lower it in the task's generation_kwargs"
            )
        return limit, sampled, [stop for stop in until if stop]

    def _prompt(self, context: str) -> list[int]:
        return self.tok_encode(context) or [self.prefix_token_id]

    def _completion(self, tokens: list[int], ended: bool, stops: Sequence[str]) -> Completion:
        whole = decoded(self.tokenizer, tokens, ended)
        found = [at for stop in stops if (at := whole.find(stop)) >= 0]
        out = Completion(whole[: min(found)] if found else whole)
        out.ended = ended or bool(found)
        return out

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Without the start of a context that is too long. Raises BakeoffError if the continuation alone is."""
        over = len(context) + len(continuation) - self.max_length - 1  # the last token is never read
        if over >= len(context):
            raise BakeoffError(f"a text of {len(continuation)} tokens is longer than the model's {self.max_length}")
        return context[max(0, over) :], continuation


def exported(name: str) -> dict[str, Any]:
    """One of the project's tasks as lm-eval takes them: its test split, answered greedily and judged by its verifier.

    `simple_evaluate(model, tasks=[exported("arithmetic")])` works with any model of lm-eval's. Only a `Sampler` says of a
    completion that it was cut off; of another model it is judged as it stands.
    """
    task: Task = plugins.find("tasks", name)
    problems = {p.id: p for p in task.problems("test")}
    if not problems:
        raise BakeoffError(f"{name} has no problems to test on")

    def dataset(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list([{"problem": p.id, "prompt": p.prompt, "answer": p.answer} for p in problems.values()])}

    def judged(doc: dict[str, str], results: Sequence[str]) -> dict[str, float]:
        completion = results[0]
        verdict = task.judge(problems[doc["problem"]], str(completion), not getattr(completion, "ended", True))
        return {"greedy": float(verdict.correct), "reward": verdict.reward, "truncated": float(verdict.truncated)}

    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": task.max_new_tokens},
        "process_results": judged,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": metric != "truncated"}
            for metric in ("greedy", "reward", "truncated")
        ],
        "num_fewshot": 0,
    }


def found(names: Sequence[str], include: Path | None) -> TaskDict:
    """The tasks of these names: the project's first, then those of YAML files under `include`, then lm-eval's own.

    Raises BakeoffError for an unknown name and for a task that cannot be loaded.
    """
    stock = [name for name in names if not ours(name)]
    where = None if include is None else str(include)
    manager = TaskManager(include_path=where, include_defaults=False)
    near = [*plugins.names("tasks"), *manager.all_tasks]
    if not set(stock) <= set(manager.all_tasks):
        manager = TaskManager(include_path=where)  # reading lm-eval's own takes seconds
    for name in stock:
        if name not in manager.all_tasks:
            close = get_close_matches(name, [*near, *manager.all_tasks], 1)
            raise BakeoffError(f"no task named {name!r}{meant(name, close or near)}")
    try:
        return manager.load([name if name in stock else exported(name) for name in names])
    except BakeoffError:
        raise
    except Exception as error:  # a task is made of files, data and code of its own
        raise BakeoffError(f"lm-eval cannot load {' or '.join(names)}: {models.first_line(error)}", MISSING) from error


def ours(name: str) -> bool:
    """Whether a task is one of the project's, which come before lm-eval's of the same name."""
    return ":" in name or name in plugins.names("tasks")


@contextmanager
def undisturbed() -> Generator[None]:
    """Leave the global generators as they are: lm-eval draws from Python's whenever it looks up the name of a task."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@undisturbed()
def measure(
    policy: Policy, tokenizer: Any, names: Sequence[str], limit: int | None = None, include: Path | None = None
) -> dict[str, Any]:
    """What lm-eval finds, by task (and group of tasks), on the first `limit` problems of each; the random state stays as it is.

    lm_eval, problems, fewshot   the library's version, how many problems, examples in each prompt
    scores                       by metric (and filter, where it has a name): the score, and its standard error over problems
                                 where it is their mean, else null
    verdicts                     of a task of the project's, by problem: 1 where the greedy completion is right
    """
    loaded = found(list(dict.fromkeys(names)), include)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)  # of a generator of its own
    with redirect_stdout(sys.stderr):
        results = cast(dict[str, Any], evaluate(Sampler(policy, tokenizer), loaded, limit=limit, bootstrap_iters=0))
    out = dict[str, Any]()
    for name, told in results["results"].items():
        task, rows = loaded["tasks"].get(name), results["samples"].get(name, [])
        scores = {key: score for key, score in told.items() if "," in key and "_stderr," not in key}
        if not scores:  # of a group that adds nothing up
            continue
        out[name] = {
            "lm_eval": version("lm-eval"),
            "problems": told["sample_len"] if task else max(told["sample_count"].values()),
            "fewshot": results["n-shot"].get(name),
            "scores": {
                key.removesuffix(",none"): {"score": score, "stderr": stderr(task, key, rows)} for key, score in scores.items()
            },
        }
        if ours(name):
            out[name]["verdicts"] = {row["doc"]["problem"]: row["greedy"] for row in rows}
    return out


def stderr(task: Any, key: str, rows: Sequence[dict[str, Any]]) -> float | None:
    """The standard error of a score that is the mean over problems; None of another."""
    metric, _, which = key.partition(",")
    if task is None or task.aggregation().get(metric) is not mean or len(rows) < 2:
        return None
    values = [float(row[metric]) for row in rows if row["filter"] == which]
    return stdev(values) / len(values) ** 0.5


def opened(name: str, root: Path) -> tuple[Policy, Any, Path | None]:
    """The policy of a run as it evaluated it, its tokenizer and the run's directory; or a model's, and None.

    Raises BakeoffError for a name that is neither, and for a run without weights.
    """
    runs = {p.parent.name: p.parent for p in (root / "runs").glob("*/config.json")}
    if folder := runs.get(name):
        config = validated(RunConfig, files.read_json(folder / "config.json"), str(folder / "config.json"))
        if not (folder / "model").exists():
            raise BakeoffError(f"{name} has no weights here; finish it with bakeoff run, or name a run that did")
        torch.set_num_threads(config.threads)
        model, device, dtype = folder / "model", resolve_device(config.device), config.dtype
    else:
        if name not in models.presets() and not Path(name).exists():
            close = get_close_matches(name, [*runs, *models.presets()], 1)
            raise BakeoffError(f"no run or model named {name!r}{meant(name, close)}; see bakeoff list runs, and list models")
        model, device, dtype = models.location(name, root), resolve_device("auto"), "float32"
        if not model.exists():
            raise BakeoffError(f"{name} is not there yet; make it with bakeoff pretrain {name}")
    policy, tokenizer = Policy.load(model, dtype)
    return policy.to(device).frozen(), tokenizer, folder


def lm_eval(
    name: str, tasks: Sequence[str], root: Path, limit: int | None, include: Path | None
) -> tuple[dict[str, Any], Path | None]:
    """What `measure` finds of a run or a model, and the run's directory, where it is added to what was found before."""
    policy, tokenizer, folder = opened(name, root)
    results = measure(policy, tokenizer, tasks, limit, include)
    if folder:
        path = folder / RESULTS
        files.write_json(path, (files.read_json(path) if path.exists() else {}) | results)
    return results, folder


def text(results: dict[str, Any]) -> str:
    """A line for each score."""
    rows = [("task", "metric", "score", "± s.e.", "problems")]
    for task, found in results.items():
        for name, value in found["scores"].items():
            error = "" if value["stderr"] is None else f"{value['stderr']:.4f}"
            rows.append((task, name, f"{value['score']:.4f}", error, f"{found['problems']:,}"))
    wide, wider = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{row[0]:<{wide}}  {row[1]:<{wider}}{row[2]:>10}{row[3]:>9}{row[4]:>10}" for row in rows)
