"""Base models: the presets that bakeoff pretrains itself, or any folder that `AutoModelForCausalLM` loads."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any
from warnings import catch_warnings, filterwarnings

from pydantic import ConfigDict, Field
from safetensors.torch import load_file, save_file

from harness import files, plugins
from harness.errors import MISSING, BakeoffError, meant
from harness.moe import Balancing, routers
from harness.mtp import MTP, Weights
from harness.parse import validated
from harness.task import Task

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

PRESETS = Path(__file__).with_name("presets.toml")
# keys of an architecture beside the fields of its transformers config: ours, and those that transformers takes without a field
OWN = ("balancing", "mtp", "model_type", "num_nextn_predict_layers", "head_dim", "partial_rotary_factor", "rope_theta")
CACHED = 16  # tokens, to measure a cache
CURVE = 200  # points of the pretraining's
DRAFTS = "mtp.safetensors"  # file of the modules of multi-token prediction


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a pretrained base."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    summary: str
    # a transformers config: model_type and its fields; beside them `balancing` (harness/moe.py) and `mtp` (harness/mtp.py)
    architecture: Mapping[str, Any] = field(default_factory=dict[str, Any])
    start: str = ""  # the preset whose base is trained on, in its architecture
    tasks: tuple[str, ...]
    steps: Count
    batch: Count  # documents a step
    lr: float = 3e-3  # of embeddings and norms (AdamW), at its peak: up over 5% of the steps, then linearly down to 5%
    matrix_lr: float = 0.02  # of the matrices inside the layers (Muon), on the same schedule
    threads: Count
    seed: int = 0
    thinking: Share = 0.5  # share of documents that think before they answer
    corrupted: Share = 0.1  # share of documents with one wrong character in the completion

    @property
    def id(self) -> str:
        """dense-3f9a1c2e: the same recipe on the same problems is always the same base."""
        recipe = {k: v for k, v in asdict(self).items() if k != "summary"} | (
            {"start": presets()[self.start].id} if self.start else {}
        )
        problems = [fingerprint(plugins.find("tasks", name)) for name in self.tasks]
        digest = hashlib.sha256(json.dumps([recipe, problems], sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{digest}"


@lru_cache
def fingerprint(task: Task) -> str:
    """Changes when the problems of a task change."""
    sample = [(p.prompt, p.answer, p.solution) for p in (*task.problems("train")[:32], *task.problems("test")[:32])]
    return hashlib.sha256(json.dumps([task.name, task.max_new_tokens, sample]).encode()).hexdigest()[:8]


@lru_cache
def presets() -> Mapping[str, Recipe]:
    return recipes(tomllib.loads(PRESETS.read_text(encoding="utf-8")), {}, PRESETS.name)


def recipes(tables: Mapping[str, Mapping[str, Any]], known: Mapping[str, Recipe], where: str) -> dict[str, Recipe]:
    """Recipes from their tables; one that is `like` another differs from it in what its own table says.

    Raises BakeoffError naming the table for whatever could not be built.
    """
    made = dict[str, Recipe]()
    for name, table in tables.items():
        at, found, changes = f"{where}: {name}", {**known, **made}, dict(table)
        architecture, parent = changes.get("architecture", {}), dict[str, Any]()
        if not isinstance(architecture, Mapping):
            raise BakeoffError(f"{at}.architecture: must be a table, not {architecture!r}")
        if (like := changes.pop("like", None)) is not None:
            if not isinstance(like, str) or like not in found:
                raise BakeoffError(f"{at}.like: no base named {like!r}{meant(str(like), found)}")
            parent = asdict(found[like])
            changes["architecture"] = {**parent["architecture"], **architecture}
        made[name] = recipe = validated(Recipe, {**parent, **changes, "name": name}, at)
        starts = known or made  # a base is trained on from a preset
        if recipe.start and recipe.start not in starts:
            raise BakeoffError(f"{at}.start: no preset named {recipe.start!r}{meant(recipe.start, starts)}")
        if recipe.start and architecture:
            raise BakeoffError(f"{at}.architecture: it is trained on from {recipe.start}, in the architecture of that")
        if known and not recipe.start:  # it needs transformers, which takes seconds to import; a test does it for the presets
            check_architecture(recipe.architecture, f"{at}.architecture")
    return made


def check_architecture(architecture: Mapping[str, Any], where: str) -> None:
    """Refuse by name what no model could be built of."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for key, cls in {"balancing": Balancing, "mtp": Weights}.items():
        if not isinstance(table := architecture.get(key, {}), Mapping):
            raise BakeoffError(f"{where}.{key}: must be a table, not {table!r}")
        validated(cls, table, f"{where}.{key}")
    kind: Any = architecture.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BakeoffError(f"{where}.model_type: transformers has no causal language model named {kind!r}")
    known = {*vars(AutoConfig.for_model(kind)), *OWN}
    if unknown := sorted(architecture.keys() - known):
        raise BakeoffError(f"{where}.{unknown[0]}: unknown key{meant(unknown[0], get_close_matches(unknown[0], known))}")
    try:
        config = AutoConfig.for_model(**configured(architecture))
    except Exception as error:  # a config may be wrong in ways of its own
        raise BakeoffError(f"{where}: {' '.join(str(error).split())}") from None

    def number(name: str, fewest: int = 1) -> int:
        value = getattr(config, name, None)
        if name in architecture or value is not None:
            if type(value) is not int:
                raise BakeoffError(f"{where}.{name}: must be a whole number, not {value!r}")
            if value < fewest:
                raise BakeoffError(f"{where}: {name} = {value} is below {fewest}")
        return fewest if value is None else value

    for name in ("intermediate_size", "head_dim"):
        number(name)
    number("num_nextn_predict_layers", fewest=0)
    hidden, layers, heads, keys = map(number, ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"))
    wrong = {f"num_attention_heads = {heads} is not divisible by num_key_value_heads = {keys}": heads % keys != 0}
    if hasattr(config, "kv_lora_rank"):
        wrong[f"kv_lora_rank = {config.kv_lora_rank} is above hidden_size = {hidden}"] = number("kv_lora_rank") > hidden
    if getattr(config, "first_k_dense_replace", layers) < layers:
        for name in ("moe_intermediate_size", "n_routed_experts", "num_experts_per_tok"):
            if name not in architecture:
                raise BakeoffError(f"{where}.{name}: a mixture of experts needs it")
        number("moe_intermediate_size")
        number("n_shared_experts", fewest=0)
        experts, k, groups, asked = map(number, ("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"))
        size = experts // groups
        wrong |= {
            f"n_routed_experts = {experts} is not divisible by n_group = {groups}": experts % groups != 0,
            f"n_routed_experts / n_group = {size} is below 2: a group is scored by its two best": size < 2,
            f"topk_group = {asked} is above n_group = {groups}": asked > groups,
            f"num_experts_per_tok = {k} is above n_routed_experts = {experts}": k > experts,
            f"num_experts_per_tok = {k} is above the {asked * size} experts of topk_group = {asked} groups": k > asked * size,
        }
    for what, so in wrong.items():
        if so:
            raise BakeoffError(f"{where}: {what}")


def configured(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformers config is made of: TOML has no null, so it is written as "none"."""
    return {name: None if value == "none" else value for name, value in architecture.items()}


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


def made(base: str, model: str, root: Path) -> Path:
    """The folder of a run's base: of one that was pretrained here by its identity, of another by its name."""
    folder = root / "bases" / base
    return folder if folder.exists() else location(model, root)


def pretraining(folder: Path) -> dict[str, Any]:
    """How a base came to be, where it was pretrained here: pretrained.json and, as `curve`, 200 lines of pretraining.jsonl."""
    if not (folder / "pretrained.json").exists():
        return {}
    rows = files.read_jsonl(folder / "pretraining.jsonl")
    return {**files.read_json(folder / "pretrained.json"), "curve": rows[:: max(1, -(-len(rows) // CURVE))]}


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


def vocabulary(model: str | None, root: Path) -> dict[str, Any]:
    """The tokens of a model (None: of any that is pretrained here) and their ids: models with the same can score each other's
    completions.
    """
    from harness.pretrain import character_tokenizer

    tokenizer = character_tokenizer() if model is None or model in presets() else inspect(location(model, root))
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
        with maybe_empty():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # each format of weights has errors of its own
        raise BakeoffError(f"{folder}: {first_line(error)}", MISSING) from error
    model, found = loaded
    if found["missing_keys"]:
        raise BakeoffError(f"{folder}: weights are missing: {', '.join(sorted(found['missing_keys'])[:3])}", MISSING)
    if (folder / DRAFTS).is_file():
        weights = load_file(folder / DRAFTS)
        model.mtp = MTP(model, 1 + max(int(name.split(".")[1]) for name in weights))
        model.mtp.load_state_dict(weights)
    return with_fast_experts(model), tokenizer


def undrafted(model: Any) -> dict[str, Any]:
    """The weights by name, without the modules that predict further tokens."""
    return {name: weight for name, weight in model.state_dict().items() if not name.startswith("mtp.")}


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """In the layout that `from_pretrained` loads; the modules that predict further tokens, which it does not know, beside it."""
    model.save_pretrained(folder, state_dict=undrafted(model))
    if hasattr(model, "mtp"):
        save_file(model.mtp.state_dict(), folder / DRAFTS)
    tokenizer.save_pretrained(folder)


def new(architecture: Mapping[str, Any], tokenizer: Any) -> Any:
    """A model with random weights, and with as many modules to predict further tokens as `num_nextn_predict_layers` says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        **configured(architecture),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    with maybe_empty():
        model = AutoModelForCausalLM.from_config(config)
    if depth := architecture.get("num_nextn_predict_layers", 0):
        model.mtp = MTP(model, depth)
    return with_fast_experts(model)


@contextmanager
def maybe_empty() -> Generator[None]:
    """Let models be made that have no shared experts, and so weights without elements."""
    with catch_warnings():
        filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
        yield


@dataclass(frozen=True)
class Facts:
    """What an architecture costs."""

    parameters: int
    active: int  # that a token meets
    flops_per_token: int  # forward
    # per token; None where some layer keeps something else than keys and values, such as a state that does not grow
    cache_elements: int | None  # by the formula: 2·K·D·L of K heads of size D in L layers; (rank + rotary)·L of latents
    cache_bytes: int | None  # measured on a cache


def facts(model: Any) -> Facts:
    """Of a model; further-token modules apart, which are not needed to decode."""
    from harness.policy import Policy

    flops = Policy(model).flops_per_token()
    drafts = sum(p.numel() for p in model.mtp.parameters()) if hasattr(model, "mtp") else 0
    kept = cache_bytes(model)
    elements = None if kept is None else cache_elements(model.config.get_text_config())
    return Facts(sum(p.numel() for p in model.parameters()) - drafts, flops // 2, flops, elements, kept)


def cache_bytes(model: Any) -> int | None:
    """Of the cache that the model fills, per token."""
    import torch

    with torch.no_grad():
        out = model(input_ids=torch.zeros(1, CACHED, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(getattr(out, "past_key_values", None), "layers", ())
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    if not kept or any(x is None for x in kept):
        return None
    return sum(x.numel() * x.element_size() for x in kept if x is not None) // CACHED


def cache_elements(config: Any) -> int | None:
    """By the formula, per token; None where the config does not say how many heads there are."""
    if rank := getattr(config, "kv_lora_rank", None):
        return (rank + config.qk_rope_head_dim) * config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None)
    keys = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    return 2 * keys * size * config.num_hidden_layers if keys and size else None


def with_fast_experts(model: Any) -> Any:
    """The model, its experts multiplied as harness/experts.py does."""
    if routers(model):
        from harness import experts

        model.set_experts_implementation(experts.NAME)
    return model


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
