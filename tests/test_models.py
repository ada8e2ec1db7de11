"""A base is known by what it was made of, and any folder with a causal language model in it will do."""

import shutil
from dataclasses import fields, replace

import pytest
import torch
from conftest import config_of, numbers, open_run

from harness import files, models
from harness.errors import MISSING, BakeoffError
from harness.train import train


def save_tokenizer(folder, **special):
    from harness.pretrain import character_tokenizer

    tokenizer = character_tokenizer()
    for name, value in special.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_llama(folder, **special):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(folder, **special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_bert(folder):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(save_tokenizer(folder)), **sizes)).save_pretrained(folder)
    return folder


def save_t5(folder):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=len(save_tokenizer(folder)), **sizes)).save_pretrained(folder)
    return folder


CHANGES = {
    "name": "other",
    "architecture": {"model_type": "glm4_moe", "hidden_size": 48},
    "tasks": ("arithmetic",),
    "steps": 61,
    "batch": 33,
    "threads": 7,
    "seed": 1,
    "start": "smoke",
}


@pytest.mark.parametrize("field", [f.name for f in fields(models.Recipe) if f.name != "summary"])
def test_a_recipe_that_differs_anywhere_is_another_base(field):
    recipe = models.presets()["smoke"]
    value = CHANGES[field] if field in CHANGES else getattr(recipe, field) * 1.5
    assert replace(recipe, **{field: value}).id != recipe.id


def test_a_recipe_is_the_same_base_under_another_summary_and_another_with_other_problems(monkeypatch):
    from tasks import knights

    recipe = models.presets()["smoke"]
    before = recipe.id
    assert replace(recipe, summary="other words").id == before
    monkeypatch.setattr(knights, "TASK", replace(knights.TASK, max_new_tokens=47))
    assert recipe.id != before


def test_a_fingerprint_changes_with_a_problem_in_either_split():
    from tasks.arithmetic import TASK

    def changed(split):
        first, *rest = TASK.problems(split)[:40]
        return replace(TASK, problems=lambda s: [replace(first, answer="0"), *rest] if s == split else TASK.problems(s))

    prints = {models.fingerprint(task) for task in (TASK, changed("train"), changed("test"), replace(TASK, name="other"))}
    assert len(prints) == 4
    assert models.fingerprint(replace(TASK, summary="other words")) == models.fingerprint(TASK)


def test_every_preset_has_a_home_below_the_root(tmp_path):
    for name in models.presets():
        base, folder = models.identity(name, tmp_path), models.location(name, tmp_path)
        assert base.startswith(f"{name}-")
        assert folder == tmp_path / "bases" / base
        assert not folder.exists()


def test_a_local_folder_serves_as_a_base_and_its_run_as_the_next_ones(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = save_llama(tmp_path / "Tiny Llama")
    config = config_of(tmp_path, model=base, steps=3, lr=3e-3, prompts=4)
    assert config.id.startswith("knights-arm-tiny-llama-s0-")
    folder = tmp_path / "runs" / config.id
    train(config.build(), open_run(config, tmp_path, folder))
    rows = numbers(folder)
    assert rows[-1]["step"] == 3
    assert rows[0]["eval/kl"] == 0
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    AutoTokenizer.from_pretrained(folder / "model")
    trained = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    start = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[k], start[k]) for k in start)
    again = config_of(tmp_path, model=folder / "model", steps=1, lr=3e-3, prompts=4)
    assert again.base != config.base
    train(again.build(), open_run(again, tmp_path, tmp_path / "runs" / again.id))


@pytest.mark.parametrize("layout", ["safetensors", "pytorch_model.bin"])
def test_a_folder_with_other_weights_or_another_tokenizer_is_another_base(tmp_path, layout):
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    if layout == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()

    def save():
        if layout == "pytorch_model.bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    save()
    first = models.identity(str(folder), tmp_path)
    copy = tmp_path / "copy" / "llama"
    shutil.copytree(folder, copy)
    assert models.identity(str(copy), tmp_path) == first
    next(iter(weights.values()))[0] += 1
    save()
    models.load(folder)
    assert models.identity(str(folder), tmp_path) != first
    settings = files.read_json(copy / "tokenizer_config.json")
    files.write_json(copy / "tokenizer_config.json", settings | {"model_max_length": 77})
    assert models.identity(str(copy), tmp_path) != first


@pytest.mark.parametrize(
    ("save", "what"),
    [
        (save_bert, "causal"),
        (save_t5, "'t5' model, which is not a causal language model"),
        (lambda folder: save_llama(folder, eos_token=None), "no EOS token"),
    ],
)
def test_what_cannot_write_and_end_a_completion_is_not_loaded(tmp_path, save, what):
    with pytest.raises(BakeoffError, match=what) as refusal:
        models.load(save(tmp_path / "model"))
    assert refusal.value.code == MISSING
    assert "\n" not in str(refusal.value)


def test_a_folder_with_a_broken_config_or_no_weights_is_refused_by_name(tmp_path):
    folder = save_llama(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BakeoffError, match="llama: "):
        models.load(folder)
    (folder / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(BakeoffError, match=r"llama: .*no such thing"):
        models.load(folder)


def test_weights_that_are_not_all_there_are_refused_rather_than_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BakeoffError, match=r"lm_head\.weight"):
        models.load(folder)


def test_a_tokenizer_without_padding_pads_with_eos(tmp_path):
    _, tokenizer = models.load(save_llama(tmp_path / "llama", pad_token=None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
