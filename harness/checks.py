"""What every number rests on. A check that does not hold stops the run, with the reason, before it can mislead."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import files, ops
from harness.errors import TrustError
from harness.method import Batch
from harness.policy import checksum

if TYPE_CHECKING:
    from harness.run import Run

# |log π_trainer - log π_sampler| of a token before any update; a few may be off by up to a hundred times that
LOG_RATIO = {"float32": 1e-4, "bfloat16": 0.2}
OTHER_ENGINE = {"float32": 0.01, "bfloat16": 0.2}  # the same of nine tokens in ten, under kernels that are not the trainer's
FIRST_LOSS = {"float32": 1e-4, "bfloat16": 0.05}  # |loss before the first step - what theory says|
KL_AT_START = {"float32": 1e-6, "bfloat16": 1e-4}  # nats a token


def first_batch(run: Run, batch: Batch) -> None:
    """The loss sees completions to their end, and the first importance ratio is 1."""
    lengths_B = batch.mask_BT.sum(-1)
    if bool((lengths_B == 0).any()):
        raise TrustError(f"{int((lengths_B == 0).sum())} of {len(batch)} sequences of the first batch have an empty loss mask")
    last_B = batch.tokens_BT.gather(1, ops.last_token(batch.mask_BT)).squeeze(1)
    uncovered_B = (last_B != run.tokenizer.eos_token_id) & (lengths_B < run.task.max_new_tokens)
    if bool(uncovered_B.any()):
        raise TrustError(f"the loss mask leaves out EOS in {int(uncovered_B.sum())} of {len(batch)} sequences that ended")
    logp_old_BT = getattr(batch, "logp_old_BT", None)
    if logp_old_BT is not None:
        with torch.no_grad():
            size = run.config.micro_batch
            both = zip(batch.tokens_BT.split(size), batch.mask_BT.split(size), strict=True)
            parts = [run.policy.logp(tokens_BT, mask_BT) for tokens_BT, mask_BT in both]
        inside_BT = batch.mask_BT.bool()
        agreement(run, torch.cat(parts)[inside_BT], logp_old_BT[inside_BT], "the first importance ratio is not 1", 1000)


def agreement(run: Run, logp_N: Tensor, sampled_N: Tensor, what: str, one_in: int) -> None:
    """Sampler and trainer give a token the same probability, up to rounding, whose long tail is one token `one_in` so many.

    Rounding may hand a token to another expert where two scores tie, and then its probability may be any.
    """
    off_N = (logp_N - sampled_N).abs()
    bound = LOG_RATIO[run.config.dtype]
    typical = float(off_N.topk(len(off_N) // one_in + 1).values[-1])
    tail = float("inf") if run.policy.routed else 100 * bound
    for worst, allowed in ((float(off_N.max()), tail), (typical, bound)):
        if not worst < allowed:
            raise TrustError(f"{what}: sampler and trainer differ by {worst:.2g} in log-probability (bound {allowed:g})")


def same_policy(run: Run, logp_N: Tensor, sampled_N: Tensor) -> None:
    """An engine that is not the trainer's has the weights that are trained."""
    off_N, bound = (logp_N - sampled_N).abs(), OTHER_ENGINE[run.config.dtype]
    off = float(off_N.topk(len(off_N) // 10 + 1).values[-1])
    if not off < bound:
        raise TrustError(f"vLLM samples from another policy: log-probabilities of a tenth are {off:.2g} apart (bound {bound:g})")


def first_loss(run: Run, loss: float, expected: float | None) -> None:
    """The loss of an untrained policy, where theory fixes it."""
    bound = FIRST_LOSS[run.config.dtype]
    if expected is not None and not abs(loss - expected) < bound:
        raise TrustError(
            f"the first loss is {loss:.6g} and must be {expected:.6g}: policy and reference differ (bound {bound:g})"
        )


def start(run: Run, kl: float) -> None:
    """Before the first step the policy is its reference: the same weights, and KL(π‖π) = 0 where the base is the reference."""
    bound = KL_AT_START[run.config.dtype]
    if run.base is run.reference and not abs(kl) < bound:
        raise TrustError(f"KL of the untrained policy to its own start is {kl:.2g} nats a token, not 0 (bound {bound:g})")
    if checksum(run.policy) != checksum(run.reference):
        raise TrustError("the untrained policy and its reference have different weights")


def frozen(run: Run) -> None:
    """Reference, teacher and reward model are what they were."""
    for name, (module, before) in run.frozen.items():
        if checksum(module) != before:
            raise TrustError(f"the weights of the {name} have changed since the start")


def finite(loss: float, grad_norms: Sequence[float], step: int) -> None:
    """Called before the optimiser moves, so the weights are still those of the step before."""
    for name, value in (("loss", loss), *(("gradient norm", norm) for norm in grad_norms)):
        if not math.isfinite(value):
            raise TrustError(f"step {step}: the {name} is {value}; the weights are those before this step")


def same_as_recorded(recorded: Mapping[str, Any], row: Mapping[str, Any], clock: Collection[str]) -> None:
    """A step that is taken again after an interruption gives the numbers it gave before."""
    for name in recorded.keys() | row.keys():
        before, now = recorded.get(name), row.get(name)
        if name not in clock and before != now and not (before != before and now != now):  # nan is itself here
            raise TrustError(
                f"step {row['step']}: {name} was {before} before the interruption and is {now} now; "
                "the machine or the code has changed: start this run again with --fresh"
            )


def intact(checkpoint: Path, sha256: Callable[[Path], str]) -> None:
    """Every file of a checkpoint is the one that was written."""
    manifest = checkpoint / "manifest.json"
    try:
        digests = files.read_json(manifest)
    except (OSError, ValueError):
        raise TrustError(f"{manifest} is damaged or missing; start this run again with --fresh") from None
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.exists() or sha256(path) != digest:
            raise TrustError(f"{path} is damaged or missing; start this run again with --fresh")
