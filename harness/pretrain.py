"""Make a base model: next-token prediction on a noisy mixture of worked and direct answers.

The base must leave room to learn: it knows the format and some of the skill, thinks in part of its answers, and errs.
"""

from __future__ import annotations

import itertools
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from harness import files, models, moe, plugins
from harness.method import Batch, padded
from harness.models import Recipe
from harness.muon import StackedMuon
from harness.policy import Policy
from harness.task import Split as ProblemSplit
from harness.task import Task

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

HELD_OUT = 512  # documents
MASKED = (0, 1, 2, 4)  # experts that every token is kept from, to see what the best of them carry
NEWTON_SCHULZ = 3  # steps
MAX_GRAD_NORM = 16.0  # of the loss summed over a completion's tokens

Progress = Callable[[int, float], None]  # (step, loss)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *string.printable[:95], "\n"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def documents(recipe: Recipe, split: ProblemSplit = "train") -> Iterator[tuple[str, str, str]]:
    """The family, prompt and completion of problems, some thinking aloud, some corrupted.

    The families take turns; one that the recipe names twice has two.
    """
    tasks: list[Task] = [plugins.find("tasks", name) for name in recipe.tasks]
    rng = Random(f"corpus/{recipe.seed}" if split == "train" else f"corpus/{split}")
    order = {
        task.name: itertools.cycle(Random(f"corpus/{task.name}").sample(range(n), n))
        for task in tasks
        if (n := len(task.problems(split)))
    }
    for task in itertools.cycle(tasks):
        problem = task.problems(split)[next(order[task.name])]
        completion = problem.solution if rng.random() < recipe.thinking else problem.answer
        if rng.random() < recipe.corrupted:
            at = rng.randrange(len(completion))
            completion = completion[:at] + rng.choice(completion) + completion[at + 1 :]
        yield task.name, problem.prompt, completion


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[Batch]:
    """Documents of like length, padded on the right; 16 batches are sorted together and served in random order.

    The mask holds the completions: prompts are random by construction, so there is nothing in them to predict.
    """
    stream, rng = documents(recipe), Random(f"batches/{recipe.seed}")
    while True:
        texts = sorted(
            (text[1:] for text in itertools.islice(stream, 16 * recipe.batch)), key=lambda text: len(text[0] + text[1])
        )
        chunks = [texts[i : i + recipe.batch] for i in range(0, len(texts), recipe.batch)]
        rng.shuffle(chunks)
        for chunk in chunks:
            prompts, completions = (tokenizer(list(part))["input_ids"] for part in zip(*chunk, strict=True))
            yield padded(prompts, [[*ids, tokenizer.eos_token_id] for ids in completions], tokenizer.pad_token_id)


def muon_and_adamw(policy: Policy, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for embeddings, norms and routers.

    At this size it halves the steps that AdamW alone needs for the same loss.
    """
    routed = {id(router.weight) for router in moe.routers(policy)}
    kinds: dict[str, list[Any]] = {"matrices": [], "stacks": [], "rest": []}
    for name, p in policy.named_parameters():
        stack, matrix = p.ndim == 3, p.ndim == 2 and "embed" not in name and id(p) not in routed
        if p.numel():
            kinds["stacks" if stack else "matrices" if matrix else "rest"].append((name, p))
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [p for _, p in kinds["matrices"]],
            lr=recipe.matrix_lr,
            weight_decay=0.0,
            ns_steps=NEWTON_SCHULZ,
            adjust_lr_fn="original",
        ),
        torch.optim.AdamW([p for _, p in kinds["rest"]], lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    if kinds["stacks"]:
        groups = [{"params": [p], "parts": 2 if "gate_up" in name else 1} for name, p in kinds["stacks"]]
        optimizers.append(StackedMuon(groups, lr=recipe.matrix_lr, ns_steps=NEWTON_SCHULZ))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def pretrain(recipe: Recipe, folder: Path, progress: Progress, start: Path | None = None) -> dict[str, Any]:
    """Train the model that the recipe describes and save it to `folder`, whole or not at all.

    start   the folder of the base to train on, where the recipe names one
    """
    disable_progress_bar()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = character_tokenizer()
    model = models.load(start)[0] if start else models.new(recipe.architecture, tokenizer)
    policy = Policy(model)
    optimizers = muon_and_adamw(policy, recipe)
    started, tokens, rows = time.perf_counter(), 0, list[dict[str, float]]()
    stream = batches(recipe, tokenizer)
    for step in range(recipe.steps):
        batch = next(stream)
        nll_BT = -policy.logp(batch.tokens_BT) * batch.mask_BT
        completion = batch.mask_BT.sum() / len(batch)  # tokens, on average: the loss is summed over them
        (nll_BT.sum() / len(batch) + completion * policy.aux_loss(batch, pretraining=True)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        done = step / recipe.steps
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / (0.05 * recipe.steps), 1.05 - done)
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.size()
        rows.append({"step": step + 1, "loss": float(nll_BT.detach().sum() / batch.mask_BT.sum()), **policy.after_step()})
        progress(step + 1, rows[-1]["loss"])
    tail = [row["loss"] for row in rows[-20:]]
    facts = {
        "recipe": recipe.id,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "tokens": tokens,
        "flops": 3 * tokens * (policy.flops_per_token() + policy.aux_flops_per_token(pretraining=True)),
        "loss": round(sum(tail) / len(tail), 4),
        "seconds": round(time.perf_counter() - started, 1),
        **held_out(recipe, policy.frozen(), tokenizer),
    }
    with files.folder(folder) as temporary:
        models.save(policy.model, tokenizer, temporary)
        files.write_json(temporary / "pretrained.json", facts)
        files.write(temporary / "pretraining.jsonl", files.jsonl(rows))
    return facts


@torch.no_grad()
def held_out(recipe: Recipe, policy: Policy, tokenizer: Any) -> dict[str, Any]:
    """What a base says of documents that it has not seen, the same for all bases of the same mixture.

    held_out        mean -log π of a completion token, in nats
    families        the same of each family
    masked          held_out with every token kept from the so many experts that its router would ask first
    load            of each family, [L][E] how often an expert is asked over the mean of its layer
    max_violation   global: the greatest load, over all layers and the tokens of all families, less 1
    """
    texts = list(itertools.islice(documents(recipe, "validation"), HELD_OUT))
    asked = dict[str, Tensor]()

    def losses() -> dict[str, tuple[float, float]]:
        """Sum over completion tokens, and their number, by family."""
        found = dict[str, tuple[float, float]]()
        for name in dict.fromkeys(recipe.tasks):
            prompts, completions = zip(*(text[1:] for text in texts if text[0] == name), strict=True)
            ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(list(completions))["input_ids"]]
            batch = padded(tokenizer(list(prompts))["input_ids"], ids, tokenizer.pad_token_id)
            with moe.watched(policy.model) as routing:
                nll_BT = -policy.logp(batch.tokens_BT) * batch.mask_BT
            if routing:
                asked.setdefault(name, torch.stack([layer.counts(batch.mask_BT[:, 1:].flatten()) for layer in routing]))
            found[name] = float(nll_BT.sum()), float(batch.mask_BT.sum())
        return found

    def mean(found: dict[str, tuple[float, float]]) -> float:
        return sum(total for total, _ in found.values()) / sum(n for _, n in found.values())

    found = losses()
    facts: dict[str, Any] = {"held_out": mean(found), "families": {name: total / n for name, (total, n) in found.items()}}
    if asked:
        masked = dict[int, float]()
        for r in (r for r in MASKED if r <= moe.spare(policy.model)):
            with moe.without_the_best(policy.model, r):
                masked[r] = mean(losses())
        load_LE = moe.relative(torch.stack(list(asked.values())).sum(0))
        facts |= {
            "masked": masked,
            "load": {name: moe.relative(counts_LE).tolist() for name, counts_LE in asked.items()},
            "max_violation": float(load_LE.max() - 1),
            "collapsed": int((load_LE < moe.COLLAPSED).sum()),
        }
    return facts
