"""One training run: what it may use, what it spent, and what it leaves on disk.

    runs/<task>-<label>-<model>-s<seed>-<hash>/
      config.json  environment.json  metrics.jsonl  evals/  samples.jsonl  checkpoint/  DONE | FAILED

All randomness is drawn from (seed, counter) and never from a generator that lives on: the position in the stream of
problems and the step are the whole random state, so a run that was interrupted continues to the same numbers.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from harness import checks, files, models, ops, plugins
from harness.comparison import RunConfig
from harness.generate import generate
from harness.meter import CLOCK, Meter
from harness.method import Batch, Rollouts, padded
from harness.policy import Policy
from harness.task import Problem, Task
from harness.tracker import Tracker

SHOWN = 4  # rollouts written to samples.jsonl
SHOWN_EVERY = 10  # steps


class Run:
    def __init__(self, config: RunConfig, root: Path, folder: Path, tracker: Tracker):
        self.config, self.folder, self.tracker = config, folder, tracker
        self.task: Task = plugins.find("tasks", config.task)
        _, base = models.resolve(config.model, root)
        model, self.tokenizer = models.load(base)
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        self.policy = Policy(model, dtype).to(config.device)
        self.reference = copy.deepcopy(self.policy).frozen()  # π_ref: the policy's own start
        self.reference_checksum = self.reference.checksum()
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

    def rollouts(self, problems: Sequence[Problem], group: int = 1) -> Rollouts:
        """`group` completions of each problem by the policy, judged by the verifier; metered."""
        epoch = self.position // len(self.task.problems("train"))
        keys = [f"rollout/{self.config.seed}/{epoch}/{p.id}/{k}" for p in problems for k in range(group)]
        prompts = [self.prompt_ids(p) for p in problems]
        limit = self.task.max_new_tokens
        y = generate(self.policy, prompts, group, keys, limit, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        self.meter.sample(sum(map(len, prompts)), sum(map(len, y.tokens)), self.policy.flops_per_token())

        asked = [(p, prompt) for p, prompt in zip(problems, prompts, strict=True) for _ in range(group)]
        texts = [self.text(tokens, ended) for tokens, ended in zip(y.tokens, y.ended, strict=True)]
        verdicts = [self.task.judge(p, text, not ended) for (p, _), text, ended in zip(asked, texts, y.ended, strict=True)]
        self.meter.verifier_calls += len(verdicts)
        reward_PG = torch.tensor([v.reward for v in verdicts]).view(-1, group)
        batch = self.pad([prompt for _, prompt in asked], y.tokens)
        logp_BT = torch.zeros(batch.tokens_BT.shape)
        for b, ((_, prompt), logp) in enumerate(zip(asked, y.logp, strict=True)):
            logp_BT[b, len(prompt) : len(prompt) + len(logp)] = torch.tensor(logp)
        logp_BT = logp_BT.to(self.policy.device)

        lengths = [len(tokens) for tokens in y.tokens]
        finished = [n for n, ended in zip(lengths, y.ended, strict=True) if ended]
        self.log(
            {
                "reward": float(reward_PG.mean()),
                "reward_std": float(reward_PG.std(-1).mean() if group > 1 else reward_PG.std()),
                "entropy": float(-ops.mean(logp_BT, batch.mask_BT)),
                "completions/mean_length": sum(lengths) / len(lengths),
                "completions/clipped_ratio": 1 - len(finished) / len(lengths),
                "completions/mean_terminated_length": sum(finished) / max(1, len(finished)),
            }
        )
        if self.step % SHOWN_EVERY == 0 and self.step not in self._shown:
            self._shown.add(self.step)
            self._samples.append(
                *(
                    {
                        "step": self.step,
                        "problem": p.id,
                        "prompt": p.prompt,
                        "completion": text,
                        "length": n,
                        **asdict(v),
                    }
                    for (p, _), text, n, v in list(zip(asked, texts, lengths, verdicts, strict=True))[:SHOWN]
                )
            )
        return Rollouts(batch.tokens_BT, batch.mask_BT, logp_BT, reward_PG.flatten().to(self.policy.device))

    def encode(self, problems: Sequence[Problem]) -> Batch:
        """The worked solutions of the problems, as sequences to learn from."""
        solutions = [[*self.ids(p.solution), self.tokenizer.eos_token_id] for p in problems]
        return self.pad([self.prompt_ids(p) for p in problems], solutions)

    def score(self, model: Policy, batch: Batch) -> Tensor:
        """[B, T] log-probabilities of the batch's tokens under another model, without gradient; metered."""
        self.meter.score(batch.size(), model.flops_per_token())
        with torch.no_grad():
            return torch.cat([model.logp(part) for part in batch.tokens_BT.split(self.config.micro_batch)])

    def generator(self, name: str) -> torch.Generator:
        """A generator that depends on the seed, the step and its name alone."""
        digest = hashlib.sha256(f"{name}/{self.config.seed}/{self.step}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

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

    def text(self, tokens: list[int], ended: bool) -> str:
        """A completion as the verifier sees it: special tokens other than the final EOS stay visible."""
        return self.tokenizer.decode(tokens[:-1] if ended else tokens, clean_up_tokenization_spaces=False)

    def pad(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        return padded(prompts, completions, self.tokenizer.pad_token_id).to(self.policy.device)

    # what the loop does with it

    def within_budget(self) -> bool:
        return self.config.budget.spent(self.meter, self.step) < 1

    def record(self, columns: Mapping[str, float] | None = None) -> None:
        """Write one line of metrics.jsonl. A line that was recorded before an interruption stays as it is."""
        self._columns.update(columns or {})
        row = {"step": self.step, **self._columns, **self.meter.columns()}
        self._columns = {}
        if self._line < len(self._recorded):
            checks.same_as_recorded(self._recorded[self._line], row, CLOCK)
        else:
            self._metrics.append(row)
        self._line += 1
        self.tracker.log(row)

    def write_evaluation(self, split: str, lines: list[dict[str, Any]]) -> None:
        files.write(self.folder / "evals" / f"{self.step:06d}-{split}.jsonl", files.jsonl(lines))

    # checkpoints

    def save(self, optimizer: Optimizer) -> None:
        """Everything the next step depends on, in one move; the checkpoint before it is kept until then."""
        with files.folder(self.folder / "checkpoint") as temporary:
            save_file({k: v.contiguous() for k, v in unshared(self.policy).items()}, temporary / "policy.safetensors")
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            state = {"step": self.step, "position": self.position, "points": self.points, "line": self._line}
            files.write_json(temporary / "state.json", {**state, "meter": self.meter.state()})
            files.write_json(temporary / "manifest.json", {p.name: sha256(p) for p in sorted(temporary.iterdir())})

    def resume(self, optimizer: Optimizer) -> bool:
        """Continue from the checkpoint, if there is one. Raises TrustError if it is damaged."""
        checkpoint = self.folder / "checkpoint"
        if not checkpoint.exists():
            return False
        checks.intact(checkpoint, sha256)
        state = files.read_json(checkpoint / "state.json")
        self.policy.load_state_dict(load_file(checkpoint / "policy.safetensors"), strict=False)
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
        self.step, self.position, self.points, self._line = (state[k] for k in ("step", "position", "points", "line"))
        for name, value in state["meter"].items():
            setattr(self.meter, name, value)
        return True

    def save_model(self) -> None:
        """The trained policy in the layout that `from_pretrained` loads; the checkpoint has served."""
        with files.folder(self.folder / "model") as temporary:
            self.policy.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)


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
