"""Speculative decoding gives what plain decoding gives: the same completions greedily, the same distribution otherwise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from harness import generate as sampler
from harness import speculative
from harness.generate import Samples, generate
from harness.models import new, presets
from harness.moe import routers
from harness.mtp import MTP
from harness.policy import Policy, checksum
from harness.pretrain import character_tokenizer
from harness.speculative import Drafted, Drafting, speculate

torch.set_num_threads(1)

pytestmark = pytest.mark.slow

TOKENIZER = character_tokenizer()
PAD, LIMIT, GROUP = TOKENIZER.pad_token_id, 24, 3
TEXTS = ["438+57=", "9*9=", "A:B+ B:A+?", "1", "0:5 1:8 2:11 4:17 7:26?", "12-7=", "x"]
PROMPTS: list[list[int]] = TOKENIZER(TEXTS)["input_ids"]
KEYS = [f"{text}/{k}" for text in TEXTS for k in range(GROUP)]
TIE = 1e-4  # of the two likeliest log-probabilities

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}
SHAPES = {
    "dense, one draft": ("mtp", {"num_nextn_predict_layers": 1, "first_k_dense_replace": 2}),
    "dense, two drafts": ("mtp", {"num_nextn_predict_layers": 2, "first_k_dense_replace": 2}),
    "experts, two drafts": ("moe", {"num_nextn_predict_layers": 2}),
    "latent and experts, one draft": ("deepseek", {"num_nextn_predict_layers": 1}),
    "latent and experts, three drafts": ("deepseek", {"num_nextn_predict_layers": 3}),
}

EOS, FEW, SHORT = 0, 4, 4  # of the tiny policy: tokens, and at most so many in a completion


def policy_of(shape: str) -> Policy:
    """Random weights, wide enough apart for the distributions to be far from uniform."""
    name, changes = SHAPES[shape]
    torch.manual_seed(0)
    model = new({**presets()[name].architecture, **SMALL, **changes}, TOKENIZER)
    for router in routers(model):
        router.e_score_correction_bias.normal_(std=0.2)
    return Policy(model, vocabulary=len(TOKENIZER)).frozen()


def tiny(drafts: int) -> Policy:
    """Few enough tokens for all completions to be enumerated, and for many a draft to be right."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    architecture = {**presets()["smoke"].architecture, **sizes, "initializer_range": 0.4, "vocab_size": FEW}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture, pad_token_id=None))
    model.mtp = MTP(model, drafts)
    return Policy(model, vocabulary=FEW).frozen()


@pytest.fixture(scope="module", params=SHAPES)
def policy(request) -> Policy:
    return policy_of(request.param)


def drawn(policy: Policy, n: int, limit: int = SHORT) -> tuple[Samples, Drafted]:
    return speculate(policy, [[1, 2, 3], [3]], n // 2, [f"drawn/{k}" for k in range(n)], limit, EOS, EOS)


def all_logp(policy: Policy, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """The log-probability of each completion that ends, or is cut off at SHORT."""
    ended = [(*y, EOS) for n in range(SHORT) for y in product(range(1, FEW), repeat=n)]
    completions = ended + list(product(range(1, FEW), repeat=SHORT))
    rows = torch.tensor([[*prompt, *y, *[EOS] * (SHORT - len(y))] for y in completions])
    with torch.no_grad():
        logp_BT = policy.logp(rows)[:, len(prompt) :].double()
    return {y: float(logp_BT[b, : len(y)].sum()) for b, y in enumerate(completions)}


def p_value(policy: Policy, tokens: list[list[int]], prompt: list[int]) -> float:
    """Of a chi-square test of completions against their probabilities; those expected less than 5 times count as one."""
    probabilities = {y: float(np.exp(logp)) for y, logp in all_logp(policy, prompt).items()}
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    counts = dict.fromkeys(probabilities, 0)
    for row in tokens:
        counts[tuple(row)] += 1
    expected, observed = (np.array([x[y] for y in probabilities]) for x in (probabilities, counts))
    expected = expected / expected.sum() * len(tokens)
    common = expected >= 5
    assert common.sum() >= 12
    return float(
        stats.chisquare([*observed[common], observed[~common].sum()], [*expected[common], expected[~common].sum()]).pvalue
    )


def trunk_guesses(reader: Drafting, k: int, text_BN: Tensor) -> Tensor:
    """What the trunk itself would say, read anew."""
    ends_B = reader.columns_BW[:, -1] + k
    rows = [text_BN[b, reader.first_B[b] : end + 1].tolist() for b, end in enumerate(ends_B.tolist())]
    return torch.stack([reader.policy.logits(torch.tensor([[*row, 0]]))[0, -1] for row in rows])


def check_greedy(policy: Policy, prompts: list[list[int]], limit: int, eos: int, pad: int) -> Drafted:
    plain = generate(policy, prompts, 1, None, limit, eos, pad)
    found, counts = speculate(policy, prompts, 1, None, limit, eos, pad)
    ties = 0
    for prompt, a, b in zip(prompts, plain.tokens, found.tokens, strict=True):
        if a != b:
            first = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            best = policy.logits(torch.tensor([prompt + a[: first + 1]]))[0, -1].log_softmax(-1).topk(2).values
            assert best[0] - best[1] < TIE
            ties += 1
    assert ties <= 1
    if not ties:
        assert found.ended == plain.ended
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(found.logp, plain.logp, strict=True))
        assert counts.tokens == sum(map(len, found.tokens)) - len(prompts)
    return counts


def test_greedy_completions_are_those_of_plain_decoding(policy):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (60,), generator=generator).tolist()
    prompts = [torch.randint(3, len(TOKENIZER), (n,), generator=generator).tolist() for n in lengths]
    often = int(np.bincount(np.concatenate(generate(policy, prompts, 1, None, LIMIT, -1, PAD).tokens)).argmax())
    for eos in (TOKENIZER.eos_token_id, often):
        check_greedy(policy, prompts, LIMIT, eos, PAD)


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("eos", [EOS, -1], ids=["ending", "cut off"])
def test_greedy_completions_are_those_of_plain_decoding_where_drafts_are_often_right(drafts, eos):
    prompts = [list(y) for n in (1, 2, 3) for y in product(range(FEW), repeat=n)]
    counts = check_greedy(tiny(drafts), prompts, LIMIT, eos, EOS)
    assert 0.05 < counts.accepted / counts.drafted < 0.95


@pytest.mark.parametrize("drafts", [1, 2])
def test_sampled_completions_have_the_probabilities_of_the_policy(drafts):
    policy, n = tiny(drafts), 16000
    found, counts = drawn(policy, n)
    assert p_value(policy, found.tokens[: n // 2], [1, 2, 3]) > 1e-3
    assert p_value(policy, found.tokens[n // 2 :], [3]) > 1e-3
    assert 0.05 < counts.accepted / counts.drafted < 0.95


def test_the_test_of_probabilities_would_find_drafts_that_are_all_accepted(monkeypatch):
    policy, n, judged = tiny(2), 16000, speculative.judged
    monkeypatch.setattr(
        speculative, "judged", lambda p, q, draft, may, u: judged(p, q, draft, may, u * torch.tensor([1.0, 0.0, 1.0]))
    )
    found, _ = drawn(policy, n)
    assert p_value(policy, found.tokens[: n // 2], [1, 2, 3]) < 1e-9


def test_log_probabilities_are_those_of_the_trainer(policy):
    found, counts = speculate(policy, PROMPTS, GROUP, KEYS, LIMIT, TOKENIZER.eos_token_id, PAD)
    for b, (tokens, logp) in enumerate(zip(found.tokens, found.logp, strict=True)):
        prompt = PROMPTS[b // GROUP]
        trained_T = policy.logp(torch.tensor([prompt + tokens]))[0, len(prompt) :]
        assert float((torch.tensor(logp) - trained_T).abs().max()) < 1e-4
    assert 0 < counts.accepted < counts.drafted


def test_drafts_are_what_the_modules_say_of_the_whole_text_read_at_once(policy, monkeypatch):
    """Whatever was rejected before."""
    guess, seen = Drafting.guess, list[float]()

    def compared(reader: Drafting, k: int, text_BN: Tensor) -> Tensor:
        logits_BV = guess(reader, k, text_BN)
        for b, end in enumerate((reader.columns_BW[:, -1] + k).tolist()):
            row = text_BN[b : b + 1, reader.first_B[b] : end + 1]
            hidden = policy.model.base_model(input_ids=row).last_hidden_state
            further = policy.model.mtp.hidden(policy.model, row, hidden)[k - 1][0, -1]
            seen.append(float((policy.model.get_output_embeddings()(further) - logits_BV[b]).abs().max()))
        return logits_BV

    monkeypatch.setattr(Drafting, "guess", compared)
    speculate(policy, PROMPTS, 1, [f"drafts/{i}" for i in range(len(PROMPTS))], 8, -1, PAD)
    assert len(seen) > 3 * len(PROMPTS)
    assert max(seen) < 1e-3


@pytest.mark.parametrize("keys", [None, KEYS], ids=["greedy", "sampled"])
def test_all_drafts_are_accepted_where_they_are_drawn_from_the_trunk(policy, keys, monkeypatch):
    monkeypatch.setattr(Drafting, "guess", trunk_guesses)
    group, limit = (1, 9) if keys is None else (GROUP, 9)
    found, counts = speculate(policy, PROMPTS, group, keys, limit, -1, PAD)
    assert counts.accepted == counts.drafted > 0
    rounds = -(-(limit - 1) // (policy.drafts + 1))
    assert (counts.rounds, counts.tokens) == (rounds * len(found.tokens), (limit - 1) * len(found.tokens))


def test_completions_do_not_depend_on_what_else_is_decoded(policy, monkeypatch):
    eos = int(np.bincount(np.concatenate(speculate(policy, PROMPTS, GROUP, KEYS, LIMIT, -1, PAD)[0].tokens)).argmax())
    together, counts = speculate(policy, PROMPTS, GROUP, KEYS, LIMIT, eos, PAD)
    assert any(together.ended)
    for b, key in list(enumerate(KEYS))[::6]:
        alone, _ = speculate(policy, [PROMPTS[b // GROUP]], 1, [key], LIMIT, eos, PAD)
        assert alone.tokens == [together.tokens[b]]
    monkeypatch.setattr(sampler, "ROWS", 5)
    parts, its = speculate(policy, PROMPTS, GROUP, KEYS, LIMIT, eos, PAD)
    assert (parts.tokens, its) == (together.tokens, counts)


def test_a_longer_limit_continues_the_same_completions_but_for_the_last_tokens_that_a_round_may_give():
    policy = tiny(2)
    whole = drawn(policy, 200, 12)[0].tokens
    for limit in (1, 2, 3, 7):
        found, counts = drawn(policy, 200, limit)
        same = max(1, limit - 2)
        assert [row[:same] for row in found.tokens] == [row[:same] for row in whole]
        assert counts.tokens == sum(map(len, found.tokens)) - len(whole)
        assert (counts.drafted > 0) == (limit > 2), "of two tokens, one is the prompt's and one the round's own"


def test_decoding_leaves_the_policy_as_it_was(policy):
    before = checksum(policy)
    for training in (True, False):
        policy.train(training)
        speculate(policy, PROMPTS, 1, None, 4, -1, PAD)
        assert policy.training is training
    assert checksum(policy) == before


def test_a_policy_without_modules_is_refused():
    plain = Policy(new({**presets()["smoke"].architecture}, TOKENIZER)).frozen()
    with pytest.raises(ValueError, match="multi-token prediction"):
        speculate(plain, PROMPTS, 1, None, LIMIT, TOKENIZER.eos_token_id, PAD)
