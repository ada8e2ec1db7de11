"""Make a base model: next-token prediction on a noisy mixture of worked and direct answers.

The base must leave room to learn: it knows the format and some of the skill, thinks half of the time, and errs.
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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from harness import files, models, plugins
from harness.method import Batch, padded
from harness.models import Recipe
from harness.policy import Policy
from harness.task import Task

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

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


def documents(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Prompt and completion of train problems, some thinking aloud, some corrupted.

    The families take turns; one that the recipe names twice has two.
    """
    tasks: list[Task] = [plugins.find("tasks", name) for name in recipe.tasks]
    rng = Random(f"corpus/{recipe.seed}")
    order = {
        task.name: itertools.cycle(Random(f"corpus/{task.name}").sample(range(n), n))
        for task in tasks
        if (n := len(task.problems("train")))
    }
    for task in itertools.cycle(tasks):
        problem = task.problems("train")[next(order[task.name])]
        completion = problem.solution if rng.random() < recipe.thinking else problem.answer
        if rng.random() < recipe.corrupted:
            at = rng.randrange(len(completion))
            completion = completion[:at] + rng.choice(completion) + completion[at + 1 :]
        yield problem.prompt, completion


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[Batch]:
    """Documents of like length, padded on the right; 16 batches are sorted together and served in random order.

    The mask holds the completions: prompts are random by construction, so there is nothing in them to predict.
    """
    stream, rng = documents(recipe), Random(f"batches/{recipe.seed}")
    while True:
        texts = sorted(itertools.islice(stream, 16 * recipe.batch), key=lambda text: len(text[0] + text[1]))
        chunks = [texts[i : i + recipe.batch] for i in range(0, len(texts), recipe.batch)]
        rng.shuffle(chunks)
        for chunk in chunks:
            prompts, completions = (tokenizer(list(part))["input_ids"] for part in zip(*chunk, strict=True))
            yield padded(prompts, [[*ids, tokenizer.eos_token_id] for ids in completions], tokenizer.pad_token_id)


def muon_and_adamw(policy: Policy, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for embeddings and norms.

    At this size it halves the steps that AdamW alone needs for the same loss.
    """
    matrices = [p for name, p in policy.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in policy.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=0.0, ns_steps=3, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def new(recipe: Recipe, tokenizer: Any) -> Any:
    """The recipe's architecture with random weights."""
    config = AutoConfig.for_model(
        **recipe.architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def pretrain(recipe: Recipe, folder: Path, progress: Progress, start: Path | None = None) -> dict[str, Any]:
    """Train the model that the recipe describes and save it to `folder`, whole or not at all.

    start   the folder of the base to train on, where the recipe names one
    """
    disable_progress_bar()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = character_tokenizer()
    model = models.load(start)[0] if start else new(recipe, tokenizer)
    policy = Policy(model)
    optimizers = muon_and_adamw(policy, recipe)
    started, tokens, losses = time.perf_counter(), 0, list[float]()
    stream = batches(recipe, tokenizer)
    for step in range(recipe.steps):
        batch = next(stream)
        nll_BT = -policy.logp(batch.tokens_BT) * batch.mask_BT
        (nll_BT.sum() / len(batch) + policy.aux_loss()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
        done = step / recipe.steps
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / (0.05 * recipe.steps), 1.05 - done)
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.size()
        losses.append(float(nll_BT.detach().sum() / batch.mask_BT.sum()))
        progress(step + 1, losses[-1])
    tail = losses[-20:]
    facts = {
        "recipe": recipe.id,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "tokens": tokens,
        "loss": round(sum(tail) / len(tail), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }
    with files.folder(folder) as temporary:
        policy.model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        files.write_json(temporary / "pretrained.json", facts)
    return facts
