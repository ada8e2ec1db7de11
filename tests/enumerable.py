"""A policy whose completions can all be enumerated, and a run that samples each of them in its turn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.meter import Budget, Meter
from harness.method import Batch, Method, Rollouts
from harness.policy import Policy
from harness.run import Run
from methods._preferences import Pairs

EOS, VOCABULARY, LONGEST = 0, 3, 3
PROMPT = 1
PREFIXES = 2 * VOCABULARY ** (1 + LONGEST)


def close(actual: Tensor, expected: Tensor | list[float], tolerance: float = 1e-9) -> bool:
    return torch.allclose(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def prefix(tokens_BT: Tensor) -> Tensor:
    """[B, T] a number for the tokens up to and with t, below PREFIXES and the same for no two."""
    code_B, columns = torch.ones_like(tokens_BT[:, 0]), list[Tensor]()
    for token_B in tokens_BT.T:
        code_B = code_B * VOCABULARY + token_B
        columns.append(code_B)
    return torch.stack(columns, 1)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


class Tabular(Policy):
    """π(token | all before it) from a table: any distribution of completions."""

    def __init__(self, seed: int):
        super().__init__(nn.Identity())
        self.table = nn.Parameter(normal(seed, PREFIXES, VOCABULARY))

    wide = False

    def predictions(self, tokens_BT: Tensor, first: int = 1) -> Tensor:
        return self.table[prefix(tokens_BT[:, :-1])][:, first - 1 :]

    def flops_per_token(self) -> int:
        return 2 * self.table.numel()


class Given(Policy):
    """A policy whose log-probabilities are these."""

    def __init__(self, logp_BT: Tensor):
        super().__init__(nn.Identity())
        self.logp_BT = nn.Parameter(logp_BT)

    def logp(self, tokens_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return self.logp_BT


class Numbers(nn.Module):
    """In the place of a Scalar: a number for every prefix from a table, 0 at the start."""

    def __init__(self, table: Tensor | None = None):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(PREFIXES, dtype=torch.float64) if table is None else table)

    def after(self, tokens_BT: Tensor) -> Tensor:
        return self.table[prefix(tokens_BT)]

    def before(self, tokens_BT: Tensor) -> Tensor:
        return F.pad(self.after(tokens_BT[:, :-1]), (1, 0))

    def flops_per_token(self) -> int:
        return 2 * self.table.numel()


def completions() -> list[list[int]]:
    """Every completion of at most LONGEST tokens: ended by EOS, or cut off."""
    ended = [[*y, EOS] for n in range(LONGEST) for y in product(range(1, VOCABULARY), repeat=n)]
    return ended + [list(y) for y in product(range(1, VOCABULARY), repeat=LONGEST)]


N = len(completions())


def everything() -> tuple[Tensor, Tensor]:
    """[B, T] tokens and mask of all completions of the prompt."""
    tokens_BT = torch.zeros(N, 1 + LONGEST, dtype=torch.long)
    mask_BT = torch.zeros(tokens_BT.shape, dtype=torch.float64)
    for b, y in enumerate(completions()):
        tokens_BT[b, : 1 + len(y)] = torch.tensor([PROMPT, *y])
        mask_BT[b, 1 : 1 + len(y)] = 1
    return tokens_BT, mask_BT


def lengths() -> Tensor:
    return everything()[1].sum(-1)


def log_probability(policy: Policy) -> Tensor:
    """[B] of each completion, with gradient."""
    tokens_BT, mask_BT = everything()
    return (policy.logp(tokens_BT) * mask_BT).sum(-1)


def probability(policy: Policy) -> Tensor:
    return log_probability(policy).exp()


def divergence(policy: Policy, reference: Policy) -> Tensor:
    """[] KL of the two distributions of completions."""
    return (probability(policy) * (log_probability(policy) - log_probability(reference))).sum()


def visits(policy: Policy, of_B: Tensor | float = 1.0) -> Tensor:
    """[PREFIXES] how probable each prefix is, each of its completions counting as much as `of_B` says."""
    tokens_BT, _ = everything()
    p_B = probability(policy).detach() * of_B
    return torch.zeros(PREFIXES, dtype=p_B.dtype).index_add(0, prefix(tokens_BT).flatten(), p_B.repeat_interleave(1 + LONGEST))


def climb(policy: Tabular, scalar: Tensor, rate: float) -> None:
    """A step up the natural gradient: of a token's logit, the gradient over how often the token is taken."""
    taken = visits(policy).view(-1, VOCABULARY)  # a prefix's number is three times that of the one before, and its last token
    with torch.no_grad():
        policy.table[: len(taken)] += rate * gradient(policy, scalar)[: len(taken)] / taken.clamp(min=1e-30)


def gradient(policy: Tabular, scalar: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, policy.table)[0]


def expected(method: Method[Any], policy: Policy, batch: Batch, weight_B: Tensor) -> Tensor:
    """[] the method's loss of each row, weighted."""
    return torch.stack([w * method.loss(policy, batch[torch.tensor([b])])[0] for b, w in enumerate(weight_B)]).sum()


def minimise(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    options = {"max_iter": 200, "tolerance_grad": 1e-8, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(module.parameters(), **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def comparisons(odds_B: Tensor) -> Pairs:
    """Every pair of completions both ways round, a row as often as Bradley-Terry annotators of utility log(odds) say so.

    σ(log a - log b) = a/(a + b): for whole odds the rows are the preferences exactly.
    """
    odds = [int(n) for n in odds_B]
    rows = [(b, w) for b in range(N) for w in range(N) if b != w for _ in range(odds[b])]
    better_M, worse_M = torch.tensor(rows).T
    tokens_BT, mask_BT = everything()
    return Pairs(tokens_BT[better_M], mask_BT[better_M], tokens_BT[worse_M], mask_BT[worse_M])


class Enumeration(Run):
    """A run without disk or tokenizer: its samples are the completions in their order, over and over, rewarded from a table."""

    def __init__(self, policy: Policy, reward_B: Tensor | None = None, reference: Policy | None = None, **budget: Any):
        self.policy, self.reference = policy, reference or copy.deepcopy(policy).frozen()
        self.reward_B = torch.zeros(N, dtype=torch.float64) if reward_B is None else reward_B
        self.config: Any = SimpleNamespace(seed=0, micro_batch=256, budget=Budget(**(budget or {"steps": 10})))
        self.task: Any = SimpleNamespace(max_new_tokens=LONGEST)
        self.meter, self.step, self.position, self.frozen = Meter(), 0, 0, {}
        self._columns, self._shown = dict[str, float](), {0}
        self.vllm = None
        self.asked = list[tuple[Any, str]]()  # who was sampled from, and under what name

    @property
    def logged(self) -> dict[str, float]:
        return self._columns

    def problems(self, n: int) -> list[Any]:
        self.position += n
        return [None] * n

    def encode(self, problems: Any) -> Batch:
        tokens_BT, mask_BT = everything()
        return Batch(tokens_BT[: len(problems)], mask_BT[: len(problems)])

    def _sample(self, sampler: Policy, problems: Any, group: int, name: str) -> tuple[Rollouts, list[dict[str, Any]]]:
        self.asked.append((sampler, name))
        rows_B = torch.arange(len(problems) * group) % N
        tokens_BT, mask_BT = everything()
        with torch.no_grad():
            logp_BT = sampler.logp(tokens_BT) * mask_BT
        ended_B = torch.tensor([y[-1] == EOS for y in completions()]).float()
        judged = {"ended_B": ended_B, "formed_B": ended_B, "trace_B": 1 - ended_B}
        y = Rollouts(tokens_BT, mask_BT, logp_BT, self.reward_B, **judged, weight_BT=mask_BT)[rows_B]
        self.meter.sample(len(problems), int(y.mask_BT.sum()), sampler.flops_per_token())
        return y, []
