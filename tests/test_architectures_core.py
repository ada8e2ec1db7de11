"""Architectures: what each costs, what its cache holds, that it survives its folder, and what is refused by name."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import tiny
import torch
from conftest import REPOSITORY, config_of, numbers, open_run
from conftest import SMALL as SMALL_EVALUATION
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness import files, models, moe
from harness.comparison import Comparison
from harness.errors import USAGE, BakeoffError
from harness.policy import Policy, checksum
from harness.pretrain import pretrain
from harness.task import Verdict
from harness.train import Interrupted, train
from tasks.knights import TASK as KNIGHTS

pytestmark = pytest.mark.slow  # all together half a minute

BUILT = sorted(name for name, recipe in models.presets().items() if recipe.architecture)
VOCABULARY = 99

# what costs


@lru_cache
def preset(name):
    torch.manual_seed(0)
    return models.new(models.presets()[name].architecture, tiny.tokenizer())


def recount(model):
    """All weights, those that a token meets, and those of them that it is multiplied with: from the modules, one by one."""
    total = active = multiplied = 0
    config = model.config
    for name, m in model.named_modules():
        if name.startswith("mtp"):
            continue
        if isinstance(m, nn.Linear):
            n = m.in_features * m.out_features
            total, active, multiplied = total + n, active + n, multiplied + n
        elif type(m).__name__.endswith("Experts"):
            one = 3 * config.hidden_size * config.moe_intermediate_size  # gate, up and down
            total += config.n_routed_experts * one
            active += config.num_experts_per_tok * one
            multiplied += config.num_experts_per_tok * one
        elif type(m).__name__.endswith("TopkRouter"):
            n = config.n_routed_experts * config.hidden_size
            total, active, multiplied = total + n, active + n, multiplied + n
        elif type(m).__name__.endswith("RMSNorm"):
            total, active = total + len(m.weight), active + len(m.weight)
    return total, active, multiplied  # the head is a Linear and the embedding it is tied to is none: once


@pytest.mark.parametrize("name", BUILT)
def test_parameters_and_flops_are_those_of_the_modules(name):
    model = preset(name)
    total, active, multiplied = recount(model)
    facts = models.facts(model)
    assert (facts.parameters, facts.active, facts.flops_per_token) == (total, active, 2 * active)
    assert multiplied < active < 1.01 * multiplied  # norms
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.numel() == VOCABULARY * model.config.hidden_size


@pytest.mark.parametrize("name", ["dense", "mla", "moe", "deepseek", "gqa", "mtp"])
def test_flops_are_those_that_torch_counts_apart_from_those_of_attention(name):
    model, tokens = preset(name), 7
    if moe.routers(model):
        model.set_experts_implementation("eager")  # in matrix multiplications that torch counts
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    models.with_fast_experts(model)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert counted == 2 * tokens * recount(model)[2]


def test_drafts_are_counted_apart_and_only_where_they_are_trained():
    model = preset("mtp")
    (layer,) = model.mtp.layers
    own = sum(m.in_features * m.out_features for m in layer.modules() if isinstance(m, nn.Linear))
    norms = 5 * 128
    assert sum(p.numel() for p in layer.parameters()) == own + norms
    policy = Policy(model)
    assert policy.aux_flops_per_token(pretraining=True) == 2 * (own + norms + VOCABULARY * 128)
    assert policy.aux_flops_per_token() == 0


def test_the_bases_that_are_compared_have_as_many_parameters_that_a_token_meets():
    dense = models.facts(preset("dense")).active
    for name in ("moe", "mla", "mtp", "deepseek", "moe-coarse", "moe-fine", "moe-shared"):
        assert models.facts(preset(name)).active == pytest.approx(dense, rel=0.02)
    totals = [models.facts(preset(name)).parameters for name in ("moe", "moe-coarse", "moe-fine", "moe-shared")]
    assert max(totals) < 1.01 * min(totals)


@pytest.mark.parametrize("name", BUILT)
def test_a_cache_holds_what_the_formula_says(name):
    facts = models.facts(preset(name))
    assert facts.cache_bytes == 4 * facts.cache_elements


def test_latents_are_28_percent_of_the_cache_of_all_heads_and_fewer_heads_less():
    cache = {name: models.facts(preset(name)).cache_elements for name in BUILT}
    heads = {"dense": 8, "moe": 8, "mtp": 8, "gqa": 2, "mqa": 1}
    assert {name: cache[name] for name in heads} == {name: 2 * n * 16 * 4 for name, n in heads.items()}
    assert cache["dense"] == 1024
    assert cache["mla"] == cache["deepseek"] == (64 + 8) * 4 == 288


# a folder, and transformers


@pytest.mark.parametrize("name", tiny.KINDS)
def test_a_model_survives_its_folder_and_transformers_loads_its_trunk(name, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny.model(name, **({"num_nextn_predict_layers": 2} if name == "mtp" else {}))
    models.save(model, tiny.tokenizer(), tmp_path)
    assert (tmp_path / models.DRAFTS).exists() == hasattr(model, "mtp")
    loaded, tokenizer = models.load(tmp_path)
    assert checksum(loaded) == checksum(model)
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert [r.e_score_correction_bias.abs().sum() > 0 for r in moe.routers(loaded)] == [True] * len(moe.routers(model))
    assert Policy(loaded).balancing == Policy(model).balancing
    assert Policy(loaded).mtp_weights == Policy(model).mtp_weights
    batch = tiny.batch()
    with torch.no_grad():
        logits_BTV = model(input_ids=batch.tokens_BT).logits
        assert torch.equal(loaded(input_ids=batch.tokens_BT).logits, logits_BTV)
        if hasattr(model, "mtp"):
            found = [
                m.mtp.loss(m, batch.tokens_BT, m.model(batch.tokens_BT[:, :-1])[0], batch.mask_BT, False) for m in (model, loaded)
            ]
            assert torch.equal(*found)
        with models.maybe_empty():
            trunk, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.allclose(trunk(input_ids=batch.tokens_BT).logits, logits_BTV, atol=1e-5)


@pytest.mark.parametrize("name", ["dense", "mla", *tiny.KINDS])
def test_transformers_continues_a_prompt_with_the_most_likely_tokens(name):
    model = tiny.model(name).eval()
    prompt_BT = tiny.batch(rows=1).tokens_BT[:, :3]
    with torch.no_grad():
        written = model.generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), max_new_tokens=5, do_sample=False)
        for n in range(3, written.shape[1]):
            assert written[0, n] == model(input_ids=written[:, :n]).logits[0, -1].argmax()
    assert 3 < written.shape[1] <= 8


def step(policy, batch, pretraining=True):
    policy.zero_grad()
    loss = (-policy.logp(batch.tokens_BT) * batch.mask_BT).sum(-1).mean() + policy.aux_loss(batch, pretraining)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", tiny.KINDS)
def test_gradient_checkpointing_changes_neither_loss_nor_gradient_nor_load(name):
    balancing = {} if name == "mtp" else {"balancing": {"kind": "sequence", "alpha": 0.3}}
    policy, batch = tiny.policy(name, **balancing).train(), tiny.batch()
    loss, gradient = step(policy, batch)
    plotted = policy.after_step()
    policy.model.activation_checkpointing_enable()
    assert policy.model.is_activation_checkpointing
    again, same = step(policy, batch)
    assert torch.allclose(again, loss)
    assert torch.allclose(same, gradient, atol=1e-5)
    assert policy.after_step() == plotted


@pytest.mark.parametrize("name", ["mla", *tiny.KINDS])
def test_in_bfloat16_loss_and_gradient_are_near_those_in_float32(name):
    model, batch = tiny.model(name), tiny.batch()
    loss, gradient = step(Policy(model), batch)
    rough, near = step(Policy(model, torch.bfloat16), batch)
    assert rough.item() == pytest.approx(loss.item(), rel=0.03)
    assert torch.cosine_similarity(near, gradient, 0) > 0.95
    assert near.isfinite().all()


# what is refused

HEAD = """
question = "?"
tasks = ["knights"]
models = ["mine"]
seeds = [0]
budget = { steps = 1 }
[methods.base]
method = "base"
"""
MIXTURE = {"first_k_dense_replace": 0, "moe_intermediate_size": 32, "n_routed_experts": 15, "num_experts_per_tok": 3}
GROUPS = MIXTURE | {"n_routed_experts": 16}
LATENT = {"model_type": "deepseek_v3", "kv_lora_rank": 32}


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def load(folder, base, name="mine"):
    path = folder / "sweep.toml"
    path.write_text(HEAD + f"[bases.{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in base.items()))
    return Comparison.load(path)


def refused(folder, base, **of):
    with pytest.raises(BakeoffError) as refusal:
        load(folder, base, **of)
    assert refusal.value.code == USAGE
    assert str(folder / "sweep.toml") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (MIXTURE | {"n_group": 4}, "n_routed_experts = 15 is not divisible by n_group = 4"),
        (GROUPS | {"n_group": 16}, "n_routed_experts / n_group = 1 is below 2"),
        (MIXTURE | {"n_group": 0}, "n_group = 0 is below 1"),
        (MIXTURE | {"num_experts_per_tok": 16}, "num_experts_per_tok = 16 is above n_routed_experts = 15"),
        (MIXTURE | {"num_experts_per_tok": 0}, "num_experts_per_tok = 0 is below 1"),
        (GROUPS | {"n_group": 8, "topk_group": 1}, "num_experts_per_tok = 3 is above the 2 experts of topk_group = 1"),
        (MIXTURE | {"topk_group": 2}, "topk_group = 2 is above n_group = 1"),
        ({"first_k_dense_replace": 0}, "moe_intermediate_size: a mixture of experts needs it"),
        (LATENT | {"kv_lora_rank": 65}, "kv_lora_rank = 65 is above hidden_size = 64"),
        (LATENT | {"kv_lora_rank": 0}, "kv_lora_rank = 0 is below 1"),
        ({"num_nextn_predict_layers": -1}, "num_nextn_predict_layers = -1 is below 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is not divisible by num_key_value_heads = 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0 is below 1"),
        ({"hidden_size": 0}, "hidden_size = 0 is below 1"),
        ({"num_hidden_layers": "three"}, "'num_hidden_layers' expected int, got str"),
        ({"num_key_value_heads": "none"}, "'num_key_value_heads' expected int, got NoneType"),
        ({"num_hiden_layers": 3}, ".num_hiden_layers: unknown key (did you mean 'num_hidden_layers'?)"),
        ({"model_type": "glm5_moo"}, ".model_type: transformers has no causal language model named 'glm5_moo'"),
        (
            {"balancing": {"kind": "bais", "rate": 0.1}},
            ".balancing: kind: must be 'none', 'sequence', 'batch' or 'bias', not",
        ),
        ({"balancing": {"kind": "sequence", "alpha": -0.1}}, ".balancing: alpha: must be greater than or equal to 0"),
        ({"balancing": {"kind": "bias", "rate": -0.1}}, ".balancing: rate: must be greater than or equal to 0"),
        ({"balancing": {"kind": "bias", "rate": "0.1"}}, ".balancing: rate: must be a valid number, not '0.1'"),
        ({"balancing": {"kind": "bias", "alpha": 0.1}}, ".balancing: 'bias' needs rate above 0 and nothing else"),
        ({"balancing": {"kind": "bias", "rate": 0.1, "alpha": 0.1}}, ".balancing: 'bias' needs rate above 0 and nothing else"),
        ({"balancing": {"kind": "batch"}}, ".balancing: 'batch' needs alpha above 0 and nothing else"),
        ({"balancing": {"alpha": 0.1}}, ".balancing: none takes no alpha"),
        ({"balancing": {"knid": "bias"}}, ".balancing: knid: unknown key (did you mean 'kind'?)"),
        ({"balancing": "bias"}, ".balancing: must be a table, not 'bias'"),
        ({"mtp": {"weight": -1.0}}, ".mtp: weight: must be greater than or equal to 0"),
        ({"mtp": {"wieght": 1.0}}, ".mtp: wieght: unknown key (did you mean 'weight'?)"),
    ],
)
def test_an_architecture_that_no_model_could_be_built_of_is_refused_by_name(tmp_path, changes, what):
    message = refused(tmp_path, {"like": "smoke", "architecture": changes})
    assert "mine.architecture" in message
    assert what in message


@pytest.mark.parametrize(
    ("base", "what"),
    [
        ({"like": "smoke", "stesp": 3}, "mine: stesp: unknown key (did you mean 'steps'?)"),
        ({"like": "smok"}, "mine.like: no base named 'smok' (did you mean 'smoke'?)"),
        ({"like": 3}, "mine.like: no base named 3"),
        ({"like": "smoke", "architecture": 3}, "mine.architecture: must be a table, not 3"),
        ({"like": "smoke-teacher", "start": "smok"}, "mine.start: no preset named 'smok' (did you mean 'smoke'?)"),
        ({"like": "smoke-teacher", "architecture": {"hidden_size": 32}}, "mine.architecture: it is trained on from smoke"),
        ({"summary": "?", "tasks": [], "steps": 1, "batch": 1, "threads": 1}, "mine.architecture.model_type: transformers has"),
        ({"summary": "?"}, "mine: tasks: field required"),
        ({"like": "smoke", "steps": 0}, "mine: steps: must be greater than or equal to 1, not 0"),
        ({"like": "smoke", "thinking": 2.0}, "mine: thinking: must be less than or equal to 1, not 2.0"),
    ],
)
def test_a_base_that_says_too_much_or_too_little_is_refused_by_name(tmp_path, base, what):
    assert what in refused(tmp_path, base)


def test_a_base_of_a_sweep_has_a_name_of_its_own(tmp_path):
    assert "bases.smoke: there is a preset of that name" in refused(tmp_path, {"like": "dense", "steps": 3}, name="smoke")
    assert "bases.My base: a name is lower case letters" in refused(tmp_path, {"like": "smoke"}, name='"My base"')


@pytest.mark.parametrize(
    "changes",
    [
        MIXTURE,
        GROUPS | {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 8},
        MIXTURE | {"n_shared_experts": 0, "num_experts_per_tok": 15},
        LATENT | {"head_dim": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": "none"},
        {"num_nextn_predict_layers": 3, "mtp": {"weight": 1, "post_weight": 0.5}},
        {"model_type": "llama"},
    ],
)
def test_what_is_let_through_can_be_built_and_read(tmp_path, changes):
    wanted = {"like": "smoke", "architecture": changes}
    if changes.get("model_type") == "llama":
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        wanted = {"summary": "?", "tasks": ["knights"], "steps": 1, "batch": 1, "threads": 1, "architecture": changes | sizes}
    recipe = load(tmp_path, wanted).recipes()["mine"]
    policy = Policy(models.new(recipe.architecture, tiny.tokenizer()))
    loss, gradient = step(policy, tiny.batch())
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert policy.drafts == changes.get("num_nextn_predict_layers", 0)


@pytest.mark.parametrize("name", BUILT)
def test_no_preset_would_be_refused(name):
    models.check_architecture(models.presets()[name].architecture, name)


def test_presets_are_listed_without_waiting_for_transformers():
    code = "import sys; from harness import models; assert models.presets(); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# bases and methods


def test_a_base_like_another_differs_from_it_in_what_its_table_says(tmp_path):
    mine = load(tmp_path, {"like": "mla", "steps": 7, "architecture": {"kv_lora_rank": 32}}).recipes()["mine"]
    parent = models.presets()["mla"]
    assert mine.architecture == {**parent.architecture, "kv_lora_rank": 32}
    assert (mine.steps, mine.batch, mine.tasks, mine.name) == (7, parent.batch, parent.tasks, "mine")
    assert models.presets()["mla"].architecture["kv_lora_rank"] == 64


def test_no_method_has_a_word_of_an_architecture():
    words = re.compile(r"(?<![a-z])(moe|mla|mtp|expert|router|aux_loss)(s|ed)?(?![a-z])", re.IGNORECASE)
    files = sorted(Path(REPOSITORY, "methods").glob("*.py"))
    assert len(files) > 5
    assert {path.name: words.findall(path.read_text(encoding="utf-8")) for path in files} == {path.name: [] for path in files}
    assert words.findall("an expert, two experts, self.aux_loss(x)") == [("expert", ""), ("expert", "s"), ("aux_loss", "")]


def test_each_seed_has_a_base_of_its_own_where_a_comparison_says_so(tmp_path):
    path = tmp_path / "bases.toml"
    path.write_text(HEAD.replace("[0]", "[0, 1, 2]").replace('["mine"]', '["dense", "moe"]'))
    fixed = {(run.model, run.seed): run.base for run in Comparison.load(path).runs(tmp_path)}
    own = {(run.model, run.seed): run.base for run in Comparison.load(path, ["base_per_seed=true"]).runs(tmp_path)}
    assert {model: {fixed[model, seed] for seed in range(3)} for model in ("dense", "moe")} == {
        model: {models.presets()[model].id} for model in ("dense", "moe")
    }
    assert len(set(own.values())) == 6
    assert {model: own[model, 0] for model in ("dense", "moe")} == {model: fixed[model, 0] for model in ("dense", "moe")}
    assert all(base.startswith(f"{model}-") for (model, _), base in own.items())


def test_different_recipes_are_different_bases_and_the_published_ones_are_what_they_were():
    ids = {name: recipe.id for name, recipe in models.presets().items()}
    assert len(set(ids.values())) == len(ids)
    assert len({base.rsplit("-", 1)[1] for base in ids.values()}) == len(ids)
    assert (ids["dense"], ids["teacher"]) == ("dense-05568ccf", "teacher-e1ee1b02")


# every method on every base

EASY = replace(KNIGHTS, name="easy", verify=lambda _, completion: Verdict(float(len(completion) % 2)))  # what a beginner can do
HEADS = {"head_dim": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": "none"}
DRAFTS = {"num_nextn_predict_layers": 1, "mtp": {"weight": 0.3, "post_weight": 0.1}}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
SMALL = {
    "moe": MIXTURE | {"balancing": {"kind": "bias", "rate": 0.01}},
    "mla": LATENT | HEADS,
    "mtp": DRAFTS,
    "deepseek": LATENT | HEADS | MIXTURE | ONE_GROUP | DRAFTS | {"balancing": {"kind": "sequence", "alpha": 0.01}},
}
ARMS = {
    "sft": {"lr": 1e-3, "prompts": 4},
    "distill": {"targets": "soft", "teacher": "smoke-teacher", "lr": 1e-3, "prompts": 4},
    "dpo": {"lr": 1e-3, "prompts": 8, "group": 4},
    "ppo": {"source": "verifier", "lr": 1e-3, "critic_lr": 1e-3, "prompts": 4, "minibatches": 1, "epochs": 1},
    "grpo": {"lr": 1e-3, "prompts": 4, "group": 4, "source": "random"},
}


def small(name, root):
    """The folder of a base that has barely begun to learn, and its facts."""
    torch.set_num_threads(1)
    table = {"like": "smoke", "steps": 10, "architecture": SMALL[name]}
    recipe = models.recipes({f"{name}-s": table}, models.presets(), "bases")[f"{name}-s"]
    folder = root / "made" / recipe.name
    return folder, pretrain(recipe, folder, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moe", "deepseek"])
def test_an_interrupted_run_of_a_mixture_continues_to_the_same_numbers(name, root):
    folder, _ = small(name, root)
    config = config_of(root, "grpo", steps=4, model=folder, task=f"{__name__}:EASY", **ARMS["grpo"])
    whole, halves = (open_run(config, root, root / "runs" / part) for part in ("whole", "halves"))
    train(config.build(), whole)
    with pytest.raises(Interrupted):
        train(config.build(), halves, stop=lambda: halves.step == 2)
    again = open_run(config, root, halves.folder)
    train(config.build(), again)
    assert numbers(again.folder) == numbers(whole.folder)
    assert checksum(again.policy) == checksum(whole.policy)
    assert float(whole.policy.lately_RE.sum()) > 0


@pytest.mark.slow
def test_a_run_whose_model_can_draft_says_what_its_drafts_are_worth(root):
    folder, _ = small("mtp", root)
    config = config_of(root, "base", model=folder, evaluation=replace(SMALL_EVALUATION, test_problems=8, test_samples=1))
    run = open_run(config, root, root / "runs" / config.id)
    train(config.build(), run)
    row = files.read_json(run.folder / "drafts.json")["knights"]
    assert row["prompts"] == 8
    assert 0 < row["accepted"] < row["drafted"] <= row["rounds"]
    assert row["different"] == row["ties"]
    assert numbers(run.folder)[-1]["mtp/acceptance"] == row["accepted"] / row["drafted"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_method_trains_every_architecture(name, root):
    folder, facts = small(name, root)
    mixture, drafts = name in ("moe", "deepseek"), name in ("mtp", "deepseek")
    assert ("max_violation" in facts) == mixture
    for method, options in ARMS.items():
        config = config_of(root, method, steps=2, model=folder, task=f"{__name__}:EASY", **options)
        run = open_run(config, root, root / "runs" / config.id)
        before = {n: p.detach().clone() for n, p in run.policy.model.named_parameters()}
        train(config.build(), run)
        rows = [row for row in numbers(run.folder) if "loss" in row]
        assert [row["step"] for row in rows] == [1, 2]
        assert all(("moe/max_violation" in row) == mixture for row in rows)
        moved = {n for n, p in run.policy.model.named_parameters() if not torch.equal(p, before[n])}
        assert {n for n in before if "proj" in n and before[n].numel()} <= moved
        assert any(n.startswith("mtp.") for n in moved) == drafts
        assert checksum(models.load(run.folder / "model")[0]) == checksum(run.policy.model)
