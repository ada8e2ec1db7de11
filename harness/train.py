"""The one algorithm: sample a batch of data, take the gradient of a loss, apply a gradient step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from harness import checks, devices, files
from harness.coefficient import coefficient
from harness.errors import TrustError
from harness.evaluate import at_the_end, on_validation
from harness.method import B, Method, Metrics
from harness.run import Run

Loss = Callable[[B], tuple[Tensor, Metrics]]

MAX_GRAD_NORM = 1.0
CHECKPOINT_EVERY = 20  # steps


class Interrupted(Exception):
    """The run was asked to stop and has saved where it is."""


def train(method: Method[B], run: Run, stop: Callable[[], bool] = lambda: False) -> None:
    """Train to the end of the budget, evaluating on the way; continue from a checkpoint if there is one."""
    torch.manual_seed(run.config.seed)
    method.setup(run)
    optimizer = method.optimizer(run.policy)
    if not run.resume(optimizer, method):
        run.log(run.ancestors())
        method.prepare(run)
        if run.spent() >= 1:
            raise TrustError("preparation alone uses up the budget; give the comparison a larger one")
        evaluate_if_due(run)
        run.save(optimizer, method)

    def loss(part: B) -> tuple[Tensor, Metrics]:
        value, metrics = method.loss(run.policy, part)
        return value + run.policy.aux_loss(part), metrics | {"loss": value.item()}

    saved = run.step
    while run.spent() < 1:
        if any(devices.gather(stop())):
            run.save(optimizer, method)
            raise Interrupted
        with torch.no_grad():
            batch = method.batch(run)  # 1. sample a batch of data
        if batch is None:
            break
        if run.step == 0:
            checks.first_batch(run, batch)
            files.write_json(run.folder / "paradigm.json", coefficient(method, run.policy, batch, run.config.micro_batch))
        for rows in run.shuffled(len(batch), *method.passes()):
            flops = method.flops_per_token(run.policy) + run.policy.aux_flops_per_token()
            columns = descend(run, optimizer, batch[rows], loss, flops)  # 2. and 3.
            if run.step == 0:
                checks.first_loss(run, columns["loss"], method.first_loss)
            run.step += 1
            run.meter.lap()
            run.record(columns)
        evaluate_if_due(run)
        if run.step - saved >= CHECKPOINT_EVERY:
            run.save(optimizer, method)
            saved = run.step
    finish(run)


def descend(run: Run, optimizer: Optimizer, batch: B, loss: Loss[B], flops_per_token: int) -> dict[str, float]:
    """Take the gradient of a loss over a batch and apply a gradient step; what to plot of it.

    A loss is a mean over sequences, so taking it part by part, on one device or several, is exact. What the optimiser holds in
    one group is clipped as one.
    """
    columns = defaultdict[str, float](float)
    for rows in devices.mine(batch.parts(run.config.micro_batch)):
        part, weight = batch[rows].trimmed(), len(rows) / len(batch)
        value, metrics = loss(part)  # 2. take the gradient of a loss
        (value * weight).backward()
        for name, metric in metrics.items():
            columns[name] += metric * weight
    run.meter.train(batch.size(), flops_per_token)
    columns = devices.total(columns)
    devices.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
    norms = [torch.nn.utils.clip_grad_norm_(group["params"], MAX_GRAD_NORM).item() for group in optimizer.param_groups]
    checks.finite(columns["loss"], norms, run.step + 1)
    optimizer.step()  # 3. apply a gradient step
    optimizer.zero_grad()
    columns |= run.policy.after_step()
    return {**columns, "grad_norm": norms[0], "learning_rate": optimizer.param_groups[0]["lr"]}


def evaluate_if_due(run: Run) -> None:
    """A point at the start, and one for every equal share of the budget that has been spent."""
    due = int(min(1.0, run.spent()) * run.config.evaluation.points)
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
    checks.frozen(run)
    columns = at_the_end(run)
    run.meter.lap(evaluation=True)
    run.record(columns)
    run.save_model()
