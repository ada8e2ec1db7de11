"""The one algorithm: sample a batch of data, take the gradient of a loss, apply a gradient step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch

from harness import checks
from harness.errors import TrustError
from harness.evaluate import at_the_end, on_validation
from harness.method import B, Method
from harness.run import Run

MAX_GRAD_NORM = 1.0
CHECKPOINT_EVERY = 20  # steps


class Interrupted(Exception):
    """The run was asked to stop and has saved where it is."""


def train(method: Method[B], run: Run, stop: Callable[[], bool] = lambda: False) -> None:
    """Train to the end of the budget, evaluating on the way; continue from a checkpoint if there is one."""
    torch.manual_seed(run.config.seed)
    method.prepare(run)
    optimizer = method.optimizer(run.policy)
    if not run.resume(optimizer):
        if not run.within_budget():
            raise TrustError("preparation alone uses up the budget; give the comparison a larger one")
        evaluate_if_due(run)
    saved = run.step
    while run.within_budget():
        if stop():
            run.save(optimizer)
            raise Interrupted
        with torch.no_grad():
            batch = method.batch(run)  # 1. sample a batch of data
        if batch is None:
            break
        if run.step == 0:
            checks.first_batch(run, batch)
        for rows in run.shuffled(len(batch), method.epochs, method.minibatches):
            columns = defaultdict[str, float](float)
            for part in rows.split(run.config.micro_batch):  # a loss is a mean over sequences, so this is exact
                weight = len(part) / len(rows)
                loss, metrics = method.loss(run.policy, batch[part])  # 2. the gradient of a loss
                ((loss + run.policy.aux_loss()) * weight).backward()
                run.meter.train(batch[part].size(), run.policy.flops_per_token())
                for name, value in {"loss": loss.item(), **metrics}.items():
                    columns[name] += value * weight
            norm = torch.nn.utils.clip_grad_norm_(trained(optimizer), MAX_GRAD_NORM).item()
            checks.finite(columns["loss"], norm, run.step + 1)
            optimizer.step()  # 3. apply a gradient step
            optimizer.zero_grad()
            run.step += 1
            run.meter.lap()
            run.record({**columns, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})
        evaluate_if_due(run)
        if run.step - saved >= CHECKPOINT_EVERY:
            run.save(optimizer)
            saved = run.step
    finish(run)


def trained(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def evaluate_if_due(run: Run) -> None:
    """A point at the start, and one for every equal share of the budget that has been spent."""
    due = int(min(1.0, run.config.budget.spent(run.meter, run.step)) * run.config.evaluation.points)
    if due <= run.points:
        return
    run.meter.lap()
    columns = on_validation(run)
    if run.step == 0:
        checks.start(run, columns["eval/kl"])
    run.points = due
    run.meter.lap(evaluation=True)
    run.record(columns)


def finish(run: Run) -> None:
    run.meter.lap()
    checks.reference_is_frozen(run)
    columns = at_the_end(run)
    run.meter.lap(evaluation=True)
    run.record(columns)
    run.save_model()
