"""Sampling with a tiny random model: a completion depends on the policy, its prompt and its key, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM

from harness import generate as sampler
from harness.generate import Samples, generate, pick, uniforms
from harness.method import padded
from harness.models import presets
from harness.policy import Policy, checksum
from harness.pretrain import character_tokenizer

torch.set_num_threads(1)

LIMIT, GROUP = 32, 3
TEXTS = ("438+57=", "9*9=", "A:B+ B:A+?", "1", "0:5 1:8 2:11 4:17 7:26?", "12-7=", "x")
TOKENIZER = character_tokenizer()
PAD = TOKENIZER.pad_token_id
PROMPTS: list[list[int]] = TOKENIZER(list(TEXTS))["input_ids"]
KEYS = [f"{text}/{k}" for text in TEXTS for k in range(GROUP)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Random weights, wide enough apart for the distributions to be far from uniform."""
    architecture = {**presets()["smoke"].architecture, "initializer_range": 0.3}
    config = AutoConfig.for_model(
        **architecture,
        vocab_size=len(TOKENIZER),
        pad_token_id=PAD,
        eos_token_id=TOKENIZER.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config)).frozen()


@pytest.fixture(scope="module")
def eos(policy) -> int:
    """A token that ends about four in five of the completions before the limit, since nothing taught the model to end."""
    counts = np.bincount([token for row in sampled(policy, eos=-1).tokens for token in set(row)], minlength=len(TOKENIZER))
    return int(np.abs(counts - 0.8 * len(KEYS)).argmin())


@pytest.fixture(scope="module")
def together(policy, eos) -> Samples:
    return sampled(policy, eos)


def sampled(policy: Policy, eos: int, which: list[int] | None = None) -> Samples:
    """Completions of these prompts, all in one batch."""
    which = list(range(len(PROMPTS))) if which is None else which
    keys = [KEYS[i * GROUP + k] for i in which for k in range(GROUP)]
    return generate(policy, [PROMPTS[i] for i in which], GROUP, keys, LIMIT, eos, PAD)


def prompts_of(samples: Samples) -> list[list[int]]:
    return [PROMPTS[b // GROUP] for b in range(len(samples.tokens))]


def agree(some: Samples, others: Samples) -> bool:
    return (
        some.tokens == others.tokens
        and some.ended == others.ended
        and all(a == pytest.approx(b, abs=1e-4) for a, b in zip(some.logp, others.logp, strict=True))
    )


def rows(samples: Samples, indices: list[int]) -> Samples:
    return Samples(*([values[i] for i in indices] for values in (samples.tokens, samples.logp, samples.ended)))


def test_half_of_the_fixtures_completions_end_well_before_the_limit_and_some_never(together):
    lengths = sorted(len(row) for row in together.tokens)
    assert lengths[len(lengths) // 2] < LIMIT - 4
    assert together.ended.count(False) >= 2
    assert len(set(lengths)) >= 5


def test_the_same_call_gives_the_same_samples(policy, eos, together):
    assert sampled(policy, eos) == together


def test_completions_are_heard_once_each_as_soon_as_their_rows_leave_the_batch(policy, eos, together, monkeypatch):
    heard, left = {}, []  # by index; and how many had been heard when the engine let rows go

    class Watched(sampler.engine(policy).__class__):
        def keep(self, rows):
            left.append(len(heard))
            super().keep(rows)

    def hear(i, tokens, ended):
        assert i not in heard
        heard[i] = tokens, ended

    monkeypatch.setattr(sampler, "engine", Watched)
    generate(policy, PROMPTS, GROUP, KEYS, LIMIT, eos, PAD, hear)
    assert heard == dict(enumerate(zip(together.tokens, together.ended, strict=True)))
    assert list(heard) != sorted(heard)
    assert left[0] >= len(KEYS) / 4
    assert left[-1] < len(KEYS)


def test_samples_do_not_depend_on_the_order_of_the_prompts(policy, eos, together):
    order = [4, 0, 6, 2, 5, 1, 3]
    assert agree(sampled(policy, eos, order), rows(together, [i * GROUP + k for i in order for k in range(GROUP)]))


@pytest.mark.parametrize("which", [[0], [3], [0, 4], [2, 3, 4]])
def test_samples_do_not_depend_on_which_prompts_share_the_batch(policy, eos, together, which):
    assert agree(sampled(policy, eos, which), rows(together, [i * GROUP + k for i in which for k in range(GROUP)]))


def test_a_completion_decoded_alone_is_the_one_of_the_batch_that_finished_rows_leave(policy, eos, together):
    for b, prompt in enumerate(prompts_of(together)):
        alone = generate(policy, [prompt], 1, [KEYS[b]], LIMIT, eos, PAD)
        assert agree(alone, rows(together, [b])), KEYS[b]


@pytest.mark.parametrize("size", [1, 5, 9])
def test_samples_do_not_depend_on_how_many_rows_are_decoded_at_once(policy, eos, together, monkeypatch, size):
    monkeypatch.setattr(sampler, "ROWS", size)
    assert agree(sampled(policy, eos), together)


def test_samples_do_not_depend_on_the_global_generators(policy, eos, together):
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.random.get_rng_state()
    assert sampled(policy, eos) == together
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_longer_limit_continues_the_same_completions(policy, eos, together):
    longer = generate(policy, PROMPTS, GROUP, KEYS, LIMIT + 8, eos, PAD)
    assert [row[:LIMIT] for row in longer.tokens] == together.tokens
    assert sum(longer.ended) >= sum(together.ended)


def test_other_keys_give_other_samples(policy, eos, together):
    others = generate(policy, PROMPTS, GROUP, [f"another/{key}" for key in KEYS], LIMIT, eos, PAD)
    assert sum(a != b for a, b in zip(others.tokens, together.tokens, strict=True)) > len(KEYS) / 2


def test_log_probabilities_are_those_of_the_padded_rows_that_are_trained_on(policy, together):
    batch = padded(prompts_of(together), together.tokens, PAD)
    logp_BT = policy.logp(batch.tokens_BT)
    for b, logp in enumerate(together.logp):
        assert logp_BT[b][batch.mask_BT[b].bool()].tolist() == pytest.approx(logp, abs=1e-4)
        assert max(logp) <= 0


def test_a_completion_ends_with_its_first_end_token_or_at_the_limit(eos, together):
    for tokens, logp, ended in zip(together.tokens, together.logp, together.ended, strict=True):
        assert len(logp) == len(tokens)
        assert eos not in tokens[:-1]
        assert ended == (tokens[-1] == eos)
        assert ended or len(tokens) == LIMIT


def test_an_end_token_at_the_very_limit_counts_as_an_end(policy, eos, together):
    b = next(b for b, ended in enumerate(together.ended) if ended)
    n = len(together.tokens[b])
    prompt = prompts_of(together)[b]
    assert generate(policy, [prompt], 1, [KEYS[b]], n, eos, PAD).ended == [True]
    if n > 1:
        cut = generate(policy, [prompt], 1, [KEYS[b]], n - 1, eos, PAD)
        assert (cut.ended, cut.tokens) == ([False], [together.tokens[b][:-1]])


def test_a_limit_of_one_token_is_kept(policy, eos, together):
    one = generate(policy, PROMPTS, GROUP, KEYS, 1, eos, PAD)
    assert one.tokens == [row[:1] for row in together.tokens]
    assert one.ended == [row[0] == eos for row in together.tokens]


def test_groups_stand_in_a_row_in_the_order_of_the_prompts(policy, eos, together):
    for i, prompt in enumerate(PROMPTS):
        group = generate(policy, [prompt], GROUP, KEYS[i * GROUP : (i + 1) * GROUP], LIMIT, eos, PAD)
        assert group.tokens == together.tokens[i * GROUP : (i + 1) * GROUP]


def test_greedy_decoding_is_the_argmax_of_the_whole_sequence_read_again_at_every_token(policy, eos):
    greedy = generate(policy, PROMPTS, 1, None, LIMIT, eos, PAD)
    for prompt, tokens, ended in zip(PROMPTS, greedy.tokens, greedy.ended, strict=True):
        naive = list[int]()
        while len(naive) < LIMIT and eos not in naive:
            logits_1TV = policy.logits(torch.tensor([[*prompt, *naive, PAD]]))
            naive.append(int(logits_1TV[0, -1].argmax()))
        assert tokens == naive
        assert ended == (eos in naive)


def test_first_tokens_have_the_frequencies_of_the_softmax(policy):
    n = 4000
    drawn = generate(policy, [PROMPTS[0]], n, [f"first/{k}" for k in range(n)], 1, TOKENIZER.eos_token_id, PAD)
    counts = np.bincount([row[0] for row in drawn.tokens], minlength=len(TOKENIZER))
    p = policy.logits(torch.tensor([[*PROMPTS[0], PAD]]))[0, -1].double().softmax(-1).numpy()
    common = n * p >= 5
    observed, expected = [*counts[common], counts[~common].sum()], n * np.array([*p[common], p[~common].sum()])
    assert common.sum() >= 5
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert stats.chisquare(observed, np.full(len(observed), n / len(observed))).pvalue < 1e-9


def test_second_tokens_have_the_frequencies_of_the_softmax_after_the_first(policy):
    n = 4000
    drawn = generate(policy, [PROMPTS[1]], n, [f"second/{k}" for k in range(n)], 2, -1, PAD)
    first = int(np.bincount([row[0] for row in drawn.tokens]).argmax())
    second = [row[1] for row in drawn.tokens if row[0] == first]
    p = policy.logits(torch.tensor([[*PROMPTS[1], first, PAD]]))[0, -1].double().softmax(-1).numpy()
    counts, common = np.bincount(second, minlength=len(TOKENIZER)), len(second) * p >= 5
    expected = len(second) * np.array([*p[common], p[~common].sum()])
    assert len(second) > 200
    assert stats.chisquare([*counts[common], counts[~common].sum()], expected).pvalue > 1e-3


def test_sampling_leaves_the_policy_as_it_was(policy, eos):
    before = checksum(policy)
    for training in (True, False):
        policy.train(training)
        out = sampled(policy, eos, [0])
        assert policy.training is training
        assert all(isinstance(x, float) for x in out.logp[0])
    assert checksum(policy) == before


# random numbers


def test_uniforms_depend_on_the_key_alone_and_the_first_do_not_depend_on_how_many_follow():
    assert uniforms("a", 10).tolist() == uniforms("a", 10).tolist()
    assert uniforms("a", 40)[:10].tolist() == uniforms("a", 10).tolist()
    np.random.seed(3)
    assert uniforms("a", 10).tolist() == uniforms("a", 10).tolist() != uniforms("b", 10).tolist()


def test_uniforms_are_uniform_within_and_across_keys():
    assert stats.kstest(uniforms("one key", 5000), "uniform").pvalue > 1e-3
    assert stats.kstest([float(uniforms(f"key/{k}", 1)[0]) for k in range(5000)], "uniform").pvalue > 1e-3
    across = np.array([[*uniforms(f"pair/{k}", 2)] for k in range(2000)])
    assert abs(np.corrcoef(across.T)[0, 1]) < 0.1
    assert across.min() >= 0
    assert across.max() < 1


def test_uniforms_are_the_same_on_every_machine():
    assert uniforms("bakeoff", 3).tolist() == [0.623895476231042, 0.869449491066693, 0.008508440152405261]


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 1), (0.2499, 1), (0.2501, 2), (0.7499, 2), (0.7501, 4), (np.nextafter(1.0, 0.0), 4)]
)
def test_a_draw_is_the_quantile_and_never_a_token_of_probability_zero(u, token):
    logits_BV = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log()
    picked_B, logp_B = pick(logits_BV, torch.tensor([u], dtype=torch.float64))
    assert picked_B.tolist() == [token]
    assert logp_B.exp().tolist() == pytest.approx([[0, 0.25, 0.5, 0, 0.25, 0][token]])


def test_without_a_random_number_the_mode_is_picked():
    assert pick(torch.tensor([[0.1, 3.0, 2.0], [5.0, 1.0, 1.0]]), None)[0].tolist() == [1, 0]


def test_columns_beyond_the_vocabulary_belong_to_no_token(policy, eos, together):
    """A model whose logits are wider than its tokenizer, all of its weight there, samples as one that ends there."""
    wide = AutoModelForCausalLM.from_config(policy.model.config)
    wide.load_state_dict(policy.model.state_dict())
    wide.resize_token_embeddings(128, mean_resizing=False)
    wide.get_output_embeddings().weight.data[len(TOKENIZER) :] = 9.0
    cropped = Policy(wide, vocabulary=len(TOKENIZER)).frozen()
    assert agree(sampled(cropped, eos), together)
    batch = padded(prompts_of(together), together.tokens, PAD)
    assert cropped.logits(batch.tokens_BT).shape == policy.logits(batch.tokens_BT).shape
    assert torch.allclose(cropped.logp(batch.tokens_BT), policy.logp(batch.tokens_BT), atol=1e-5)
    assert max(t for row in sampled(Policy(wide).frozen(), eos).tokens for t in row) >= len(TOKENIZER)
