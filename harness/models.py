"""Base models: the presets that bakeoff pretrains itself, or any folder that `AutoModelForCausalLM` loads."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from harness import plugins
from harness.errors import MISSING, BakeoffError, meant
from harness.task import Task

PRESETS = Path(__file__).with_name("presets.toml")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a pretrained base."""

    name: str
    summary: str
    architecture: Mapping[str, Any] = field(default_factory=dict[str, Any])  # a transformers config: model_type and its fields
    start: str = ""  # the preset whose base is trained on, in its architecture
    tasks: tuple[str, ...]
    steps: int
    batch: int  # documents a step
    lr: float = 3e-3  # of embeddings and norms (AdamW), at its peak: up over 5% of the steps, then linearly down to 5%
    matrix_lr: float = 0.02  # of the matrices inside the layers (Muon), on the same schedule
    threads: int
    seed: int = 0
    thinking: float = 0.5  # share of documents that think before they answer
    corrupted: float = 0.1  # share of documents with one wrong character in the completion

    @property
    def id(self) -> str:
        """dense-3f9a1c2e: the same recipe on the same problems is always the same base."""
        recipe = {k: v for k, v in asdict(self).items() if k != "summary"} | (
            {"start": presets()[self.start].id} if self.start else {}
        )
        problems = [fingerprint(plugins.find("tasks", name)) for name in self.tasks]
        digest = hashlib.sha256(json.dumps([recipe, problems], sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{digest}"


def fingerprint(task: Task) -> str:
    """Changes when the problems of a task change."""
    sample = [(p.prompt, p.answer, p.solution) for p in (*task.problems("train")[:32], *task.problems("test")[:32])]
    return hashlib.sha256(json.dumps([task.name, task.max_new_tokens, sample]).encode()).hexdigest()[:8]


@lru_cache
def presets() -> Mapping[str, Recipe]:
    tables = tomllib.loads(PRESETS.read_text(encoding="utf-8"))
    return {name: TypeAdapter(Recipe).validate_python({"name": name, **table}) for name, table in tables.items()}


def location(model: str, root: Path) -> Path:
    """The folder that a base is loaded from; a preset's may not be there yet.

    Raises BakeoffError for a name that is neither a preset nor a folder with a config in it.
    """
    if model in presets():
        return root / "bases" / presets()[model].id
    folder = Path(model)
    if not folder.exists():
        raise BakeoffError(f"no model named {model!r}, and no folder of that name{meant(model, presets())}", MISSING)
    if not (folder / "config.json").is_file():
        raise BakeoffError(f"{folder} is not a model: it has no config.json; save one there with save_pretrained", MISSING)
    return folder


def identity(model: str, root: Path) -> str:
    """A name that changes when the base does. Raises BakeoffError as `location` and `inspect` do."""
    folder = location(model, root)
    if model in presets():
        return folder.name
    inspect(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as f:
            digest.update(path.name.encode() + hashlib.file_digest(f, "sha256").digest())
    return f"{folder.resolve().name.lower()}-{digest.hexdigest()[:8]}"


def vocabulary(model: str, root: Path) -> dict[str, Any]:
    """The tokens of a model and their ids: models with the same can score each other's completions."""
    from harness.pretrain import character_tokenizer

    tokenizer = character_tokenizer() if model in presets() else inspect(location(model, root))
    return {"tokens": tokenizer.get_vocab(), "end": tokenizer.eos_token_id}


def inspect(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises BakeoffError if the folder cannot be a base.

    A base is a causal language model (an encoder in its decoder class is not one) whose tokenizer can end a completion.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a config may be wrong in ways of its own
        raise BakeoffError(f"{folder}: {first_line(error)}", MISSING) from error
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encoder:
        raise BakeoffError(f"{folder} holds a {config.model_type!r} model, which is not a causal language model", MISSING)
    if tokenizer.eos_token_id is None:
        raise BakeoffError(f"{folder}: the tokenizer has no EOS token, so no completion could end; set eos_token in it", MISSING)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(folder: Path) -> tuple[Any, Any]:
    """A causal language model in float32 and its tokenizer, from a local folder. Raises BakeoffError as `inspect` does."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = inspect(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # each format of weights has errors of its own
        raise BakeoffError(f"{folder}: {first_line(error)}", MISSING) from error
    model, found = loaded
    if found["missing_keys"]:
        raise BakeoffError(f"{folder}: weights are missing: {', '.join(sorted(found['missing_keys'])[:3])}", MISSING)
    return model, tokenizer


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
