"""Data, reward, loss: what a post-training method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Self, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.optim import AdamW, Optimizer

from harness import ops
from harness.policy import Policy

if TYPE_CHECKING:
    from harness.run import Run

Metrics = dict[str, float]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass
class Batch:
    """Sequences to learn from: every field is a tensor whose first axis is B, the sequence; `_BT` adds T, the token.

    A field `x_mask_BT` says how far the sequences of all fields `x_…_BT` reach; `mask_BT` says it for the rest.
    """

    tokens_BT: Tensor  # token ids, prompt and completion, padded on the right
    mask_BT: Tensor  # 1 on the completion tokens the loss applies to, EOS included

    def __post_init__(self) -> None:
        for f in fields(self):
            suffix, shape = f.name.rsplit("_", 1)[-1], tuple(getattr(self, f.name).shape)
            if len(shape) != len(suffix) or shape[0] != len(self.tokens_BT):
                raise ValueError(f"{type(self).__name__}.{f.name} has shape {shape}; its name says [{', '.join(suffix)}]")

    def __len__(self) -> int:
        return len(self.tokens_BT)

    def lengths(self) -> dict[str, Tensor]:
        """[B] tokens of each sequence, prompt and completion, pad not: up to the last of each mask, by the prefix of its name."""
        masks = [f.name for f in fields(self) if f.name.endswith("mask_BT")]
        return {name.removesuffix("mask_BT"): ops.last_token(getattr(self, name)).squeeze(1) + 1 for name in masks}

    def size(self) -> int:
        """Tokens of all sequences."""
        return sum(int(length_B.sum()) for length_B in self.lengths().values())

    def mask_of(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] the mask of one of the batch's own fields of tokens. Raises ValueError for another tensor."""
        name = next((f.name for f in fields(self) if getattr(self, f.name) is tokens_BT), None)
        if name is None:
            raise ValueError(f"a loss must read the tokens of {type(self).__name__} as they are, not a copy or a part of them")
        return getattr(self, self._prefix(name) + "mask_BT")

    def _prefix(self, name: str) -> str:
        """Of the mask that goes with a field."""
        masks = (f.name.removesuffix("mask_BT") for f in fields(self) if f.name.endswith("mask_BT"))
        return max((prefix for prefix in masks if name.startswith(prefix)), key=len)

    def parts(self, rows: int) -> Sequence[Tensor]:
        """Indices of so many rows at a time, of like length, so that little is padded."""
        return torch.stack(list(self.lengths().values())).sum(0).argsort(stable=True).split(rows)

    def trimmed(self) -> Self:
        """Without the columns in which no sequence has a token; two stay at least, of which a model reads one."""
        widths = {prefix: max(2, int(length_B.max())) for prefix, length_B in self.lengths().items()}
        cut = {
            f.name: getattr(self, f.name)[:, : widths[self._prefix(f.name)]]
            for f in fields(self)
            if f.name.rsplit("_", 1)[-1].startswith("BT")
        }
        return replace(self, **cut)

    def __getitem__(self, rows: Tensor) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def to(self, device: torch.device) -> Self:
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def padded(prompts: Sequence[list[int]], completions: Sequence[list[int]], pad: int) -> Batch:
    """Prompts and the completions to learn, as one batch."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    tokens_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask_BT = torch.zeros(tokens_BT.shape)
    for b, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        mask_BT[b, len(p) : len(p) + len(c)] = 1
    return Batch(tokens_BT, mask_BT)


@dataclass
class Rollouts(Batch):
    """Completions sampled from a policy and judged by the task's verifier, groups in a row."""

    logp_BT: Tensor  # under the policy; 0 outside the completion
    reward_B: Tensor  # the verifier's, in [0, 1]
    ended_B: Tensor  # 1 where the completion ended by itself, 0 where it was cut off
    formed_B: Tensor  # 1 where it reasons and then answers, whatever it says
    trace_B: Tensor  # 1 where its reasoning holds, by the task's rule
    weight_BT: Tensor  # what each token counts for in an expectation over the policy: 1, unless another engine sampled; 0 outside


B = TypeVar("B", bound=Batch)

CARD = ("samples from", "reward", "baseline", "advantage", "aggregation", "KL", "clip", "passes")


@dataclass(kw_only=True)
class Method(ABC, Generic[B]):
    """A post-training method is three answers: what data, what reward, what loss.

    A method is a dataclass: its fields are its hyper-parameters, in the symbols of its paper.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    data: ClassVar[str]  # one line each: `bakeoff list methods`, the README's table
    reward: ClassVar[str]  # and the report are printed from these
    objective: ClassVar[str]

    lr: Positive
    models: ClassVar[tuple[str, ...]] = ()  # fields that name another model, such as a teacher: part of the run's identity
    first_loss: ClassVar[float | None] = None  # what the loss must be before the first step, where theory says so

    def setup(self, run: Run) -> None:
        """Whenever the run's process starts: take the models that take part. Costs nothing."""

    def prepare(self, run: Run) -> None:
        """Once in a run's life, before step 0: collect preferences, fit a reward model. Metered."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds for this method beside policy and optimiser: tensors and numbers, in dicts and lists."""
        return {}

    def restore(self, run: Run, state: dict[str, Any]) -> None:
        """Take up what `state` returned, in place of `prepare`."""

    def optimizer(self, policy: Policy) -> Optimizer:
        """What is trained, and how fast."""
        return AdamW(policy.parameters(), lr=self.lr, weight_decay=0.0, fused=True)

    def passes(self) -> tuple[int, int]:
        """How often a batch is gone through, and in how many gradient steps each time."""
        return 1, 1

    def flops_per_token(self, policy: Policy) -> int:
        """2N of all that is trained."""
        return policy.flops_per_token()

    @abstractmethod
    def batch(self, run: Run) -> B | None:
        """Sample data and assign credit; None when there is nothing more to learn from. No gradient flows through here."""

    @abstractmethod
    def loss(self, policy: Policy, batch: B) -> tuple[Tensor, Metrics]:
        """The mean over the batch's sequences of what to descend, and what to plot.

        The policy reads the batch's fields of tokens as they are: what an architecture adds to the loss finds its mask by them.
        """

    def card(self) -> dict[str, str]:
        """The choices that papers leave to the code, for the report: of any of `CARD`, those that apply."""
        return {}
