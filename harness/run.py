"""One training run: what it may use, what it spent, and what it leaves on disk.

    runs/<task>-<label>-<model>-s<seed>-<hash>/
      config.json  environment.json  metrics.jsonl  evals/  samples.jsonl  checkpoint/  DONE | FAILED

All randomness is drawn from (seed, counter) and never from a generator that lives on: the position in the stream of
problems and the step are the whole random state, so a run that was interrupted continues to the same numbers; only a budget
of `seconds` ends where the clock says.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from harness import checks, devices, files, models, ops, plugins, vllm_engine
from harness.comparison import RunConfig
from harness.errors import TrustError
from harness.generate import Heard, Samples, generate, seed
from harness.judging import judged
from harness.meter import CLOCK, Meter
from harness.method import B, Batch, Method, Rollouts, padded
from harness.policy import Policy, Scalar, checksum
from harness.task import Problem, Task
from harness.tracker import Tracker

SHOWN = 4  # rollouts written to samples.jsonl
SHOWN_EVERY = 10  # steps
ROUNDS = 8  # of sampling, before a source of data that gives nothing ends the run


class Run:
    def __init__(self, config: RunConfig, root: Path, folder: Path, tracker: Tracker):
        self.config, self.folder, self.tracker = config, folder, tracker
        self.task: Task = plugins.find("tasks", config.task)
        self.other_tasks: list[Task] = [plugins.find("tasks", name) for name in config.evaluation.other_tasks]
        self.root = root
        base = models.made(config.base, config.model, root)
        self.tokenizer = models.inspect(base)
        self.policy = self._load(root / "runs" / config.start / "model" if config.start else base)
        self.frozen: dict[str, tuple[nn.Module, str]] = {}  # what must not change, and its checksum
        self.reference = copy.deepcopy(self.policy)  # π_ref: the policy's own start
        self.freeze("reference", self.reference)
        self.base = self._load(base).frozen() if config.start else self.reference  # what eval/kl is measured from
        self.vllm = vllm_engine.VLLM(self.policy, base) if config.engine == "vllm" else None
        self.best_of: tuple[int, Callable[[Batch], Tensor]] | None = None  # answers are the best of so many by this score, [B]
        self.decoding = "evaluation"  # which random numbers completions are evaluated with
        self.meter = Meter()
        self.step = 0  # optimiser steps taken
        self.position = 0  # problems taken from the stream
        self.points = -1  # evaluations made on validation: 0 is the start's
        self._columns: dict[str, float] = {}  # what the next line of metrics.jsonl will hold
        self._line = 0  # lines of metrics.jsonl that this run has come to, on disk or not
        self._recorded = files.read_jsonl(folder / "metrics.jsonl")
        self._metrics = files.Journal(folder / "metrics.jsonl")
        self._samples = files.Journal(folder / "samples.jsonl")
        self._shown = {row["step"] for row in files.read_jsonl(folder / "samples.jsonl")}

    def _load(self, folder: Path) -> Policy:
        return Policy.load(folder, self.config.dtype)[0].to(self.config.device)

    # what a method may ask for

    def problems(self, n: int) -> list[Problem]:
        """The next n of the stream, which depends on task and seed only: every epoch is a new permutation of `train`."""
        train = self.task.problems("train")
        out = list[Problem]()
        for position in range(self.position, self.position + n):
            epoch, i = divmod(position, len(train))
            out.append(train[permutation(f"{self.config.task}/{self.config.seed}/{epoch}", len(train))[i]])
        self.position += n
        return out

    def sample(self, sampler: Policy, problems: Sequence[Problem], group: int, name: str) -> Rollouts:
        """`group` completions of each problem by any model, judged by the verifier; metered.

        Their random numbers are those of `name`, the seed, the problem and the pass over the stream.
        """
        if sampler is self.policy:
            return self.rollouts(problems, group)
        return self._sample(sampler, problems, group, name)[0]

    def rollouts(self, problems: Sequence[Problem], group: int = 1) -> Rollouts:
        """`group` completions of each problem by the policy, judged by the verifier; metered, plotted, some of them shown."""
        y, shown = self._sample(self.policy, problems, group, "rollout")
        if self.vllm:
            y = self._weighed(y)
        lengths_B = y.mask_BT.sum(-1)
        finished_B = lengths_B[y.ended_B.bool()]
        reward_PG = y.reward_B.view(-1, group)
        self.log(
            {
                "reward": float(reward_PG.mean()),
                "reward_std": float(reward_PG.std(-1).mean() if group > 1 else y.reward_B.std(correction=min(1, len(y) - 1))),
                "entropy": float(-ops.mean(y.logp_BT, y.mask_BT)),
                "completions/mean_length": float(lengths_B.mean()),
                "completions/clipped_ratio": 1 - len(finished_B) / len(y),
                "completions/mean_terminated_length": float(finished_B.sum()) / max(1, len(finished_B)),
            }
        )
        if self.step % SHOWN_EVERY == 0 and self.step not in self._shown:
            self._shown.add(self.step)
            self._samples.append(*({"step": self.step, **row} for row in shown))
        return y

    def _weighed(self, y: Rollouts) -> Rollouts:
        """Rollouts of another engine with the policy's own log-probabilities, and the weights that make up for the difference."""
        with self.policy.sampling():
            logp_BT = self.score(self.policy, y)
        inside_BT = y.mask_BT.bool()
        checks.same_policy(self, logp_BT[inside_BT], y.logp_BT[inside_BT])
        weight_BT = vllm_engine.weights(logp_BT, y.logp_BT) * y.mask_BT
        off_N, weight_N = (logp_BT - y.logp_BT)[inside_BT].abs(), weight_BT[inside_BT]
        self.log(
            {
                "sampling/sampling_logp_difference/mean": float(off_N.mean()),
                "sampling/sampling_logp_difference/max": float(off_N.max()),
                "sampling/importance_sampling_ratio/mean": float(weight_N.mean()),
                "sampling/importance_sampling_ratio/min": float(weight_N.min()),
                "sampling/importance_sampling_ratio/max": float(weight_N.max()),
            }
        )
        return replace(y, logp_BT=logp_BT, weight_BT=weight_BT)

    def verified(self, sampler: Policy, prompts: int, group: int, name: str) -> Rollouts:
        """The right ones of `group` completions of each of the next problems, as many rounds as it takes to have one."""

        def right() -> Rollouts:
            y = self.sample(sampler, self.problems(prompts), group, name)
            right_N = torch.nonzero(y.reward_B == 1.0).flatten()
            self.log({f"{name}/right": len(right_N) / len(y)})
            return y[right_N]

        return some(right, f"{name}: none of {prompts * group} completions is right")

    def _sample(
        self, sampler: Policy, problems: Sequence[Problem], group: int, name: str
    ) -> tuple[Rollouts, list[dict[str, Any]]]:
        """Rollouts, and the first of them as they are shown in samples.jsonl."""
        first, train = self.position - len(problems), len(self.task.problems("train"))
        keys = [
            f"{name}/{self.config.seed}/{(first + i) // train}/{p.id}/{k}" for i, p in enumerate(problems) for k in range(group)
        ]
        prompts = [self.prompt_ids(p) for p in problems]
        limit = self.task.max_new_tokens
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id

        def sample(heard: Heard) -> Samples:
            if self.vllm and sampler is self.policy:
                return self.vllm.generate(prompts, group, keys, limit, eos, heard)
            return generate(sampler, prompts, group, keys, limit, eos, pad, heard)

        asked = [(p, prompt) for p, prompt in zip(problems, prompts, strict=True) for _ in range(group)]
        y, texts, verdicts = judged(self.task, [p for p, _ in asked], self.tokenizer, sample)
        self.meter.sample(sum(map(len, prompts)), sum(map(len, y.tokens)), sampler.flops_per_token())
        self.meter.verifier_calls += len(verdicts)
        self.meter.lap()
        batch = self.pad([prompt for _, prompt in asked], y.tokens)
        logp_BT = torch.zeros(batch.tokens_BT.shape)
        for b, ((_, prompt), logp) in enumerate(zip(asked, y.logp, strict=True)):
            logp_BT[b, len(prompt) : len(prompt) + len(logp)] = torch.tensor(logp)
        shown = [
            {"problem": p.id, "prompt": p.prompt, "completion": text, "length": len(tokens), **asdict(v)}
            for (p, _), text, tokens, v in list(zip(asked, texts, y.tokens, verdicts, strict=True))[:SHOWN]
        ]
        rollouts = Rollouts(
            batch.tokens_BT,
            batch.mask_BT,
            logp_BT,
            reward_B=torch.tensor([v.reward for v in verdicts]),
            ended_B=torch.tensor(y.ended).float(),
            formed_B=torch.tensor([v.formed for v in verdicts]).float(),
            trace_B=torch.tensor([v.trace is True for v in verdicts]).float(),
            weight_BT=batch.mask_BT,
        )
        return rollouts.to(self.policy.device), shown

    def encode(self, problems: Sequence[Problem]) -> Batch:
        """The worked solutions of the problems, as sequences to learn from."""
        solutions = [[*self.ids(p.solution), self.tokenizer.eos_token_id] for p in problems]
        return self.pad([self.prompt_ids(p) for p in problems], solutions)

    def score(self, model: Policy | Scalar, batch: Batch, what: Literal["logp", "before", "after"] = "logp") -> Tensor:
        """[B, T] what a model says of the batch's tokens, by its method of that name. No gradient; metered.

        0 at pad; log-probabilities are 0 wherever the mask is.
        """
        read: Callable[..., Tensor] = getattr(model, what)
        self.meter.score(batch.size(), model.flops_per_token())
        sequences = Batch(batch.tokens_BT, batch.mask_BT)
        with torch.no_grad():
            cut = [(rows, sequences[rows].trimmed()) for rows in sequences.parts(self.config.micro_batch)]
            parts = [(rows, read(x.tokens_BT, x.mask_BT) if what == "logp" else read(x.tokens_BT)) for rows, x in cut]
        read_BT = parts[0][1].new_zeros(batch.tokens_BT.shape)
        for rows, x_BT in parts:
            read_BT[rows, : x_BT.shape[1]] = x_BT
        length_B1 = sequences.lengths()[""][:, None]
        return read_BT * (torch.arange(read_BT.shape[1], device=read_BT.device) < length_B1)

    def freeze(self, name: str, model: nn.Module) -> None:
        """Never to be trained again; checked at the end of the run."""
        model.eval().requires_grad_(False)
        self.frozen[name] = (model, checksum(model))

    def model(self, name: str) -> Policy:
        """A model that takes part beside the policy, such as a teacher, by its preset or folder; frozen."""
        model = self._load(models.location(name, self.root))
        self.freeze(name, model)
        return model

    def generator(self, name: str) -> torch.Generator:
        """A generator that depends on the seed, the step and its name alone."""
        return torch.Generator().manual_seed(seed(f"{name}/{self.config.seed}/{self.step}"))

    def shuffled(self, n: int, epochs: int, minibatches: int) -> Iterator[Tensor]:
        """Row indices of each minibatch: one pass after another over n rows, each in its own order."""
        for epoch in range(epochs):
            yield from torch.randperm(n, generator=self.generator(f"shuffle/{epoch}")).chunk(minibatches)

    def log(self, columns: Mapping[str, float]) -> None:
        """Add columns to the line of the step under way."""
        self._columns.update(columns)

    # tokens

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, problem: Problem) -> list[int]:
        return self.tokenizer(problem.prompt)["input_ids"]

    def pad(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        return padded(prompts, completions, self.tokenizer.pad_token_id).to(self.policy.device)

    # what the loop does with it

    def ancestors(self) -> dict[str, float]:
        """What the stages before this one cost, all of them together."""
        if not self.config.start:
            return {}
        rows = files.read_jsonl(self.root / "runs" / self.config.start / "metrics.jsonl")
        return {
            f"ancestors/{name}": rows[-1][f"budget/{name}"] + rows[0].get(f"ancestors/{name}", 0.0)
            for name in ("flops", "seconds")
        }

    def spent(self) -> float:
        """The share of the budget that is gone."""
        return devices.agreed(self.config.budget.spent(self.meter, self.step))

    def record(self, columns: Mapping[str, float] | None = None) -> None:
        """Write one line of metrics.jsonl. One that was recorded before an interruption stays as it is: this one equals it."""
        self._columns.update(columns or {})
        row = {"step": self.step, **self._columns, **self.meter.columns()}
        self._columns = {}
        if self._line < len(self._recorded):
            checks.same_as_recorded(self._recorded[self._line], row, CLOCK)
        else:
            self._metrics.append(row)
        self._line += 1
        self.tracker.log(row)

    def write_load(self, task: str, load_LE: list[list[float]]) -> None:
        """How often each expert of each layer was asked, over the mean of the layer; once for every step and task."""
        rows = files.read_jsonl(self.folder / "experts.jsonl")
        kept = [row for row in rows if (row["step"], row["task"]) != (self.step, task)]
        files.write(self.folder / "experts.jsonl", files.jsonl([*kept, {"step": self.step, "task": task, "load": load_LE}]))

    def write_evaluation(self, split: str, lines: list[dict[str, Any]]) -> None:
        files.write(self.folder / "evals" / f"{self.step:06d}-{split}.jsonl", files.jsonl(lines))

    # checkpoints

    def save(self, optimizer: Optimizer, method: Method[Any]) -> None:
        """Everything the next step depends on, in one move; the checkpoint before it is kept until then."""
        with files.folder(self.folder / "checkpoint") as temporary:
            save_file({k: v.contiguous() for k, v in unshared(self.policy).items()}, temporary / "policy.safetensors")
            torch.save({"optimizer": optimizer.state_dict(), "method": method.state()}, temporary / "training.pt")
            state = {"step": self.step, "position": self.position, "points": self.points, "line": self._line}
            files.write_json(temporary / "state.json", {**state, "meter": self.meter.state()})
            files.write_json(temporary / "manifest.json", {p.name: sha256(p) for p in sorted(temporary.iterdir())})

    def resume(self, optimizer: Optimizer, method: Method[Any]) -> bool:
        """Continue from the checkpoint, if there is one. Raises TrustError if it is damaged."""
        checkpoint = self.folder / "checkpoint"
        if checkpoint.exists():
            checks.intact(checkpoint, sha256)
        state: dict[str, Any] = files.read_json(checkpoint / "state.json") if checkpoint.exists() else {"line": 0}
        if len(self._recorded) < state["line"]:
            raise TrustError(f"{self.folder / 'metrics.jsonl'} is shorter than its checkpoint; start this run again with --fresh")
        if self.config.budget.seconds is not None or self.vllm:  # steps taken again take another time, or other samples
            self._forget_after(state["line"])
        if not checkpoint.exists():
            return False
        self.policy.load_state_dict(load_file(checkpoint / "policy.safetensors"), strict=False)
        training = torch.load(checkpoint / "training.pt", weights_only=True, map_location=self.policy.device)
        optimizer.load_state_dict(training["optimizer"])
        method.restore(self, training["method"])
        self.step, self.position, self.points, self._line = (state[k] for k in ("step", "position", "points", "line"))
        for name, value in state["meter"].items():
            setattr(self.meter, name, value)
        for row in self._recorded[: self._line]:
            self.tracker.log(row)
        return True

    def _forget_after(self, line: int) -> None:
        """Drop what was recorded after a line of metrics.jsonl."""
        del self._recorded[line:]
        self._metrics.cut(line)
        last = max((row["step"] for row in self._recorded), default=-1)
        self._shown = {step for step in self._shown if step < last}  # those of a step are drawn once it has been recorded
        self._samples.cut(sum(row["step"] < last for row in files.read_jsonl(self.folder / "samples.jsonl")))
        if rows := files.read_jsonl(self.folder / "experts.jsonl"):
            files.write(self.folder / "experts.jsonl", files.jsonl(row for row in rows if row["step"] <= last))
        for path in (self.folder / "evals").glob("[0-9]*-*.jsonl"):
            if int(path.name.split("-")[0]) > last:
                path.unlink()

    def save_model(self) -> None:
        """The trained policy in the layout that `from_pretrained` loads."""
        with files.folder(self.folder / "model") as temporary:
            models.save(self.policy.model, self.tokenizer, temporary)

    def done(self) -> None:
        """Mark the run as finished; its checkpoint has served."""
        files.write(self.folder / "DONE", "")
        (self.folder / "FAILED").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)


def some(draw: Callable[[], B], nothing: str) -> B:
    """What the first round of drawing gives that gives anything. Raises TrustError when `ROUNDS` of them give nothing."""
    for _ in range(ROUNDS):
        if len(batch := draw()):
            return batch
    raise TrustError(f"{nothing}, in each of {ROUNDS} rounds: there is nothing to learn from")


@lru_cache(maxsize=2)
def permutation(key: str, n: int) -> list[int]:
    """A random order of range(n) that depends on the key alone."""
    return Random(f"order/{key}").sample(range(n), n)


def unshared(policy: Policy) -> dict[str, Tensor]:
    """The weights, each once: a tied head is its embedding."""
    seen, out = set[int](), dict[str, Tensor]()
    for name, p in policy.state_dict().items():
        if p.data_ptr() not in seen:
            seen.add(p.data_ptr())
            out[name] = p
    return out


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
