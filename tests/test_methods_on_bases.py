"""Every method trains every base, knows none of them, and continues where it was interrupted."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, config_of, numbers, open_run
from conftest import SMALL as SMALL_EVALUATION

from harness import files, models
from harness.policy import checksum
from harness.pretrain import pretrain
from harness.task import Verdict
from harness.train import Interrupted, train
from harness.worker import execute
from tasks.knights import TASK as KNIGHTS

pytestmark = pytest.mark.slow

EASY = replace(KNIGHTS, name="easy", verify=lambda _, completion: Verdict(float(len(completion) % 2)))  # what a beginner can do
MIXTURE = {"first_k_dense_replace": 0, "moe_intermediate_size": 32, "n_routed_experts": 15, "num_experts_per_tok": 3}
LATENT = {"model_type": "deepseek_v3", "kv_lora_rank": 32}
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
def test_a_run_says_how_its_base_was_pretrained_and_what_it_costs_without_drafts(root):
    folder, facts = small("mtp", root)
    config = config_of(root, "base", model=folder)
    there = root / "runs" / config.id
    assert execute(config, root, there, "one", False, lambda: False) == 0
    said, (model, _) = files.read_json(there / "base.json"), models.load(folder)
    assert said.items() >= asdict(models.facts(model)).items()
    assert said["parameters"] + sum(p.numel() for p in model.mtp.parameters()) == facts["parameters"]
    assert {k: said[k] for k in facts if k != "parameters"} == {k: facts[k] for k in facts if k != "parameters"}
    assert [row["step"] for row in said["curve"]] == list(range(1, 11))


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


def test_no_method_has_a_word_of_an_architecture():
    words = re.compile(r"(?<![a-z])(moe|mla|mtp|expert|router|aux_loss)(s|ed)?(?![a-z])", re.IGNORECASE)
    files = sorted(Path(REPOSITORY, "methods").glob("*.py"))
    assert len(files) > 5
    assert {path.name: words.findall(path.read_text(encoding="utf-8")) for path in files} == {path.name: [] for path in files}
    assert words.findall("an expert, two experts, self.aux_loss(x)") == [("expert", ""), ("expert", "s"), ("aux_loss", "")]
