"""One run on several processes, each with a device of its own, started by accelerate.

Every process is the same program with the same weights, problems and random numbers. What is dear is shared out: completions are
sampled by prompt, with keyed random numbers, judged and gathered; gradients are taken by micro-batch, and summed. The
micro-batches are those of a single process, so that the gradient differs from its own in the order of a sum alone. The first
process writes the run; the others write into a copy that is thrown away.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import BakeoffError

T = TypeVar("T")


def join(device: str) -> None:
    """Become one of the processes that accelerate has started. Raises BakeoffError where it was told to shard the weights."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true":
            raise BakeoffError(f"{name}: a run has whole weights on each of its devices; launch it with --multi_gpu")
    from accelerate import PartialState

    PartialState(cpu=device == "cpu")


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if several() else 0


def count() -> int:
    return dist.get_world_size() if several() else 1


def mine(things: Sequence[T]) -> Sequence[T]:
    """Every n-th, for this one of n processes."""
    return things[rank() :: count()]


def gather(value: T) -> list[T]:
    """What each process says, in the order of their ranks."""
    if not several():
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def joined(share: Mapping[int, T]) -> list[T]:
    """What the processes have between them, by its index."""
    everything = {i: value for part in gather(share) for i, value in part.items()}
    return [everything[i] for i in range(len(everything))]


def agreed(value: T) -> T:
    """What the first process says."""
    return gather(value)[0]


def total(columns: Mapping[str, float]) -> dict[str, float]:
    """Columns of all processes, added up."""
    summed = defaultdict[str, float](float)
    for part in gather(dict(columns)):
        for name, value in part.items():
            summed[name] += value
    return dict(summed)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Over the processes, in place; all of them then hold the same bits."""
    if not several():
        return
    trained = list(parameters)
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    dist.all_reduce(flat)
    for p, grad in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        p.grad = grad.view_as(p)


def written(folder: Path, held: ExitStack) -> Path:
    """Where this process writes: the first into the run's folder, another into a copy for as long as `held` lasts."""
    gather(None)  # the first has the lock
    if rank():
        copy = Path(held.enter_context(TemporaryDirectory())) / folder.name
        folder = Path(shutil.copytree(folder, copy))
    gather(None)  # and writes once the others have their copies
    return folder
