"""What the learning curves show of a run: which columns, under which title, and how their values are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan

from reports.load import Run
from reports.numbers import percent, si, tick


@dataclass(frozen=True)
class Axis:
    key: str
    name: str
    columns: tuple[str, ...]  # summed


@dataclass(frozen=True)
class Quantity:
    column: str
    title: str
    caption: str
    write: Callable[[float], str] = si
    mark: Callable[[float], str] = tick
    from_zero: bool = True
    whole: bool = False  # a share of 1 in percent, so that the axis ends there at the latest
    least: float = -inf  # the axis begins there at the latest, and what is below is drawn at its foot


def share(column: str, title: str, caption: str) -> Quantity:
    """A quantity between 0 and 1, in percent."""
    return Quantity(column, title, caption, write=lambda x: f"{percent(x)}%", mark=lambda x: percent(x, 0), whole=True)


@dataclass(frozen=True)
class Pair:
    """Two columns of an arm that say something next to each other."""

    title: str
    caption: Callable[[Sequence[Run]], str]
    columns: tuple[str, str]
    names: tuple[str, str]


def _mean(runs: Sequence[Run], column: str) -> float:
    values = [value for run in runs if isfinite(value := run.final(column))]
    return sum(values) / len(values) if values else nan


def _reward_model(runs: Sequence[Run]) -> str:
    return (
        "The learned reward of the rollouts, in standard deviations from its mean on held-out pairs, and the verifier's, "
        "which it does not train on: where only the first goes on rising, the arm exploits the model. "
        f"Fitted to {si(_mean(runs, 'reward_model/pairs'))} pairs; of those held out it ranks "
        f"{percent(_mean(runs, 'reward_model/accuracy'))}% rightly, with a calibration error of "
        f"{si(_mean(runs, 'reward_model/calibration_error'))}."
    )


def _displacement(_: Sequence[Run]) -> str:
    return (
        "Mean log-likelihood of the completions of a batch of pairs: where both lines fall, "
        "likelihood went to completions that are in neither."
    )


AXES = (
    Axis("steps", "steps", ("step",)),
    Axis("tokens", "tokens", ("budget/sampled_tokens", "budget/trained_tokens")),
    Axis("flops", "FLOPs", ("budget/flops",)),
    Axis("seconds", "seconds", ("budget/seconds",)),
)
QUANTITIES = (
    share(
        "eval/pass@1",
        "Validation pass@1, %",
        "Share of sampled completions that the verifier accepts, on held-out validation problems.",
    ),
    Quantity(
        "reward",
        "Training reward",
        "Mean reward of the rollouts a step trains on, or the verifier's where a learned one is; only arms that sample.",
    ),
    Quantity("eval/kl", "KL to the base", "Mean per-token KL(π‖base) on completions sampled for validation problems."),
    Quantity("eval/mean_length", "Completion length", "Mean length of validation completions, in tokens."),
    Quantity("entropy", "Entropy", "Mean entropy of the next token in the rollouts a step trains on, in nats."),
    share(
        "rewards/accuracies",
        "Preference accuracy, %",
        "Share of a batch of pairs in which the policy's implicit reward ranks the chosen completion above the rejected one.",
    ),
    replace(
        share(
            "explained_variance",
            "Explained variance, %",
            "Share of the variance of the returns that the critic foresaw; what is below −100% is drawn there.",
        ),
        mark=lambda x: tick(100 * x),
        least=-1.0,
    ),
    Quantity(
        "eval/max_violation",
        "MaxVio of the experts",
        "Global, on completions sampled for validation problems: how far the expert that is asked most stands above the mean "
        "load of its layer, 0 where all are asked alike; only mixtures of experts.",
    ),
)
PAIRS = (
    Pair("learned and true reward", _reward_model, ("reward_model/reward", "reward"), ("reward model", "verifier")),
    Pair("chosen and rejected", _displacement, ("logps/chosen", "logps/rejected"), ("chosen", "rejected")),
)
KL = Axis("kl", "KL, √ scale", ("eval/kl",))
REWARD = replace(
    QUANTITIES[0],
    title="Validation pass@1, %, against KL to the base",
    caption="The way of each arm through training, mean over seeds at each evaluation, a dot where it ended: higher is better at "
    "the task, further left is nearer to the base. √ scale, after Gao et al. (2023); thin grey dashes: the untrained base.",
)
