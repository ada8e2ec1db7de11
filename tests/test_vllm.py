"""Rollouts from vLLM itself, where it is installed, and what is made of rollouts that another engine has sampled."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from conftest import REPOSITORY, SMALL
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness import files, models, vllm_engine, worker
from harness.comparison import Comparison
from harness.errors import TrustError
from harness.generate import Samples, generate
from harness.meter import Budget
from harness.policy import Policy
from harness.pretrain import character_tokenizer
from harness.run import Run
from harness.search import Search
from harness.tracker import NoTracker
from harness.train import train

torch.set_num_threads(1)

TOKENIZER = character_tokenizer()
EOS, PAD, LIMIT = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, 12
PROMPTS = [TOKENIZER(text)["input_ids"] for text in ("438+57=", "9*9=", "1")]
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: docs/scale.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of a class that vLLM reads, its columns more than the tokenizer's tokens, its head its embedding."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = Qwen2Config(
        **sizes,
        vocab_size=len(TOKENIZER) + 29,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("model")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def run_of(folder, tmp_path, steps=3, **changes) -> Run:
    comparison = Comparison(
        name="rollouts",
        question="Does it train?",
        methods={"grpo": {"method": "grpo", "lr": 1e-2, "prompts": 4, "group": 8, "source": "random"}},
        tasks=("arithmetic",),
        models=(str(folder),),
        seeds=(0,),
        budget=Budget(steps=steps),
        evaluation=SMALL,
        device="cpu",
        **changes,
    )
    (config,) = comparison.runs(tmp_path)
    kept = tmp_path / "runs" / config.id
    kept.mkdir(parents=True)
    return Run(config, tmp_path, kept, NoTracker())


def shaken(policy: Policy, by: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))


# the weights


def test_the_weight_is_the_ratio_of_the_probabilities_up_to_a_cap():
    pi, mu = torch.tensor([[0.2, 0.5, 0.9, 0.01]]), torch.tensor([[0.4, 0.4, 0.3, 0.02]])
    assert vllm_engine.weights(pi.log(), mu.log()).tolist()[0] == pytest.approx([0.5, 1.25, 2.0, 0.5])


class Elsewhere:
    """Samples from a policy of its own, by our own engine."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def generate(self, prompts, group, keys, limit, eos, heard):
        return generate(self.policy, prompts, group, keys, limit, eos, PAD, heard)


def rollouts_from_elsewhere(folder, tmp_path, by: float) -> tuple[Run, Run]:
    """A run whose rollouts come from its policy with other weights, and one that has those."""
    run, other = run_of(folder, tmp_path), run_of(folder, tmp_path / "other")
    shaken(other.policy, by)
    run.vllm = Elsewhere(other.policy)
    return run, other


def test_rollouts_of_another_engine_have_the_policys_probabilities_and_the_weights_that_make_up_for_its_own(folder, tmp_path):
    run, other = rollouts_from_elsewhere(folder, tmp_path, 1e-4)
    y = run.rollouts(run.problems(4), 8)
    with torch.no_grad():
        logp_BT, sampled_BT = (p.logp(y.tokens_BT) * y.mask_BT for p in (run.policy, other.policy))
    assert (logp_BT - sampled_BT).abs().max() > 1e-3
    assert torch.allclose(y.logp_BT, logp_BT, atol=1e-5)
    assert torch.allclose(y.weight_BT, (logp_BT - sampled_BT).exp().clamp(max=2) * y.mask_BT, atol=1e-4)
    off_N = (logp_BT - sampled_BT)[y.mask_BT.bool()].abs()
    assert run._columns["sampling/sampling_logp_difference/mean"] == pytest.approx(float(off_N.mean()), rel=1e-2)
    assert run.meter.scored_tokens > y.size()  # asking the policy is paid for


def test_our_own_rollouts_count_in_full(folder, tmp_path):
    run = run_of(folder, tmp_path)
    y = run.rollouts(run.problems(4), 8)
    assert torch.equal(y.weight_BT, y.mask_BT)
    assert not any(name.startswith("sampling/") for name in run._columns)


def test_an_engine_with_other_weights_than_the_policys_is_found_out(folder, tmp_path):
    run, _ = rollouts_from_elsewhere(folder, tmp_path, 0.02)
    with pytest.raises(TrustError, match="vLLM samples from another policy"):
        run.rollouts(run.problems(4), 8)


def test_runs_keep_the_names_they_had_before_there_was_a_choice(folder, tmp_path):
    config = run_of(folder, tmp_path).config
    assert "engine" not in config.identity()
    assert replace(config, engine="vllm").id != config.id


def test_a_search_samples_by_the_engine_it_was_given_and_has_the_identity_it_had(tmp_path):
    path = str(REPOSITORY / "sweeps" / "search_grpo.toml")
    for changes, engine in (((), "own"), (("engine=vllm",), "vllm")):
        search = Search.load(Path(path), changes)
        default = search.defaults(tmp_path)["grpo"]
        assert default.engine == engine
        assert search.identity(default).get("engine", "own") == engine
    assert "engine" not in Search.load(Path(path)).identity(Search.load(Path(path)).defaults(tmp_path)["grpo"])


def test_what_vllm_is_given_has_the_names_of_a_saved_model_a_head_and_no_drafts(folder):
    policy = tiny.policy("mtp")
    names = dict(vllm_engine.VLLM(policy, folder)._weights())
    assert any(name.startswith("mtp.") for name in policy.model.state_dict())
    assert {name.partition(".")[0] for name in names} == {"model", "lm_head"}
    policy, _ = Policy.load(folder, "float32")
    names = dict(vllm_engine.VLLM(policy, folder)._weights())
    assert names.keys() == policy.model.state_dict().keys()
    assert len(names["lm_head.weight"]) == len(names["model.embed_tokens.weight"]) == len(TOKENIZER)


@pytest.mark.parametrize(("kind", "several", "why"), [("moe", 1, "keeps old weights of experts"), ("mtp", 2, "on one device")])
def test_what_vllm_cannot_train_is_refused_by_name(tmp_path, monkeypatch, kind, several, why):
    models.save(tiny.model(kind), tiny.tokenizer(), tmp_path / "model")
    monkeypatch.setattr(worker.devices, "count", lambda: several)
    config = replace(run_of(tmp_path / "model", tmp_path / "root").config, engine="vllm")
    kept = tmp_path / "kept"
    assert worker.execute(config, tmp_path, kept, "", False, lambda: False) == 3
    assert why in (kept / "FAILED").read_text()


def test_after_a_kill_samples_and_steps_since_the_checkpoint_are_drawn_anew(folder, tmp_path, monkeypatch):
    class Fresh(Elsewhere):
        """No two processes sample the same."""

        def __init__(self, policy: Policy, _: Path):
            super().__init__(policy)
            self.process = next(processes)

        def generate(self, prompts, group, keys, limit, eos, heard):
            return super().generate(prompts, group, [f"{self.process}/{key}" for key in keys], limit, eos, heard)

    class Killed(Exception): ...

    def kill() -> bool:
        if run.step == 24:
            raise Killed
        return False

    processes = itertools.count()
    monkeypatch.setattr(vllm_engine, "VLLM", Fresh)
    run = run_of(folder, tmp_path, engine="vllm", steps=30)
    with pytest.raises(Killed):
        train(run.config.build(), run, kill)
    before, lost = (files.read_jsonl(run.folder / name) for name in ("metrics.jsonl", "samples.jsonl"))
    again = Run(run.config, tmp_path, run.folder, NoTracker())
    train(again.config.build(), again)
    after, shown = (files.read_jsonl(run.folder / name) for name in ("metrics.jsonl", "samples.jsonl"))
    kept = sum(row["step"] <= 20 for row in before)
    assert after[:kept] == before[:kept]
    assert after[kept : len(before)] != before[kept:]
    assert sorted({row["step"] for row in shown}) == [0, 10, 20]
    assert [row for row in shown if row["step"] == 10] == [row for row in lost if row["step"] == 10]
    assert [row for row in shown if row["step"] == 20] != [row for row in lost if row["step"] == 20]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_said_before_anything_runs(cli, tmp_path):
    code, out, err = cli("run", "sweeps/smoke.toml", "engine=vllm", "--root", tmp_path)
    assert (code, out, err) == (4, "", "bakeoff: engine: vLLM is not installed; docs/scale.md says how\n")
    assert not list(tmp_path.iterdir())


# vLLM


@pytest.fixture(scope="module")
def engine(folder):
    return vllm_engine.VLLM(Policy.load(folder, "float32")[0].eval(), folder)


def keys(n: int, name: str = "a") -> list[str]:
    return [f"{name}/{i}" for i in range(n)]


def worst(policy: Policy, y: Samples, group: int) -> float:
    """|log μ - log π|, at most."""
    asked = [prompt for prompt in PROMPTS for _ in range(group)]
    with torch.no_grad():
        return max(
            float((policy.logp(torch.tensor([p + tokens]))[0, len(p) :] - torch.tensor(logp)).abs().max())
            for p, tokens, logp in zip(asked, y.tokens, y.logp, strict=True)
        )


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_vllm_has_the_trainers_probabilities_before_and_after_the_weights_have_moved(engine):
    assert worst(engine.policy, engine.generate(PROMPTS, 4, keys(12), LIMIT, EOS), 4) < 1e-4
    stale = engine.generate(PROMPTS, 4, keys(12), LIMIT, EOS)
    shaken(engine.policy, 0.02)
    assert worst(engine.policy, stale, 4) > 0.1
    assert worst(engine.policy, engine.generate(PROMPTS, 4, keys(12), LIMIT, EOS), 4) < 1e-4


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_a_completion_of_vllms_depends_on_its_key_and_not_on_its_neighbours(engine):
    alone = engine.generate(PROMPTS[:1], 4, keys(4), LIMIT, EOS)
    assert engine.generate(PROMPTS[:1], 4, keys(4), LIMIT, EOS).tokens == alone.tokens
    assert engine.generate(PROMPTS[:1], 4, keys(4, "b"), LIMIT, EOS).tokens != alone.tokens
    assert engine.generate(PROMPTS, 4, keys(12), LIMIT, EOS).tokens[:4] == alone.tokens


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_vllms_completions_are_heard_once_each_as_they_end(engine):
    heard = {}

    def hear(i, tokens, ended):
        assert i not in heard
        heard[i] = tokens, ended

    y = engine.generate(PROMPTS, 64, keys(192), LIMIT, EOS, hear)
    assert heard == dict(enumerate(zip(y.tokens, y.ended, strict=True)))
    assert list(heard) != sorted(heard)
    lengths = [len(tokens) for tokens, _ in heard.values()]
    assert lengths == sorted(lengths)


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_vllm_ends_with_the_tokenizers_end_and_samples_none_but_its_tokens(engine):
    y = engine.generate(PROMPTS, 64, keys(192), LIMIT, EOS)
    assert 0 < sum(y.ended) < len(y.ended)
    for tokens, ended in zip(y.tokens, y.ended, strict=True):
        assert (tokens[-1] == EOS) == ended
        assert EOS not in tokens[:-1]
        assert len(tokens) == LIMIT or ended
        assert max(tokens) < len(TOKENIZER)


@needs_vllm
@pytest.mark.filterwarnings("default")
def test_vllm_samples_the_policys_distribution(engine):
    n = 4000
    y = engine.generate(PROMPTS[:1], n, keys(n), 1, EOS)
    counts_V = torch.bincount(torch.tensor([tokens[0] for tokens in y.tokens]), minlength=len(TOKENIZER)).double()
    with torch.no_grad():
        p_V = engine.policy.logits(torch.tensor([[*PROMPTS[0], 0]]))[0, -1].double().softmax(-1)
    kept = p_V * n > 5
    observed, expected = (torch.cat([x[kept], x[~kept].sum()[None]]) for x in (counts_V, p_V * n))
    statistic = float(((observed - expected).square() / expected).sum())
    degrees = len(observed) - 1
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations of a chi-square


@needs_vllm
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains_on_vllms_rollouts(folder, tmp_path, dtype):
    run = run_of(folder, tmp_path, engine="vllm", dtype=dtype)
    before = [p.clone() for p in run.policy.parameters()]
    train(run.config.build(), run)
    assert any(not torch.equal(p, q) for p, q in zip(run.policy.parameters(), before, strict=True))
    rows = files.read_jsonl(run.folder / "metrics.jsonl")
    off = [row[name] for row in rows if (name := "sampling/sampling_logp_difference/mean") in row]
    assert len(off) == 3
    assert all(0 < x < (1e-5 if dtype == "float32" else 0.05) for x in off)
