"""Recipes of bases: what is refused by name, what can be built, and which differ."""

import json
import subprocess
import sys

import pytest
import tiny
from conftest import REPOSITORY

from harness import models
from harness.comparison import Comparison
from harness.errors import USAGE, BakeoffError
from harness.policy import Policy

pytestmark = pytest.mark.slow

BUILT = sorted(name for name, recipe in models.presets().items() if recipe.architecture)
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
    recipe = load(tmp_path, wanted).recipes["mine"]
    policy = Policy(models.new(recipe.architecture, tiny.tokenizer()))
    loss, gradient = tiny.step(policy, tiny.batch())
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


# which differ


def test_a_base_like_another_differs_from_it_in_what_its_table_says(tmp_path):
    mine = load(tmp_path, {"like": "mla", "steps": 7, "architecture": {"kv_lora_rank": 32}}).recipes["mine"]
    parent = models.presets()["mla"]
    assert mine.architecture == {**parent.architecture, "kv_lora_rank": 32}
    assert (mine.steps, mine.batch, mine.tasks, mine.name) == (7, parent.batch, parent.tasks, "mine")
    assert models.presets()["mla"].architecture["kv_lora_rank"] == 64


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
