"""What a batch knows of its sequences: how long they are, and how to take them apart without changing a number."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from enumerable import Tabular
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.meter import Meter
from harness.method import Batch, padded
from harness.policy import Policy
from harness.run import Run
from methods._preferences import Pairs

PROMPTS = [[5, 6], [5], [7, 8, 9, 7], [5, 6, 7]]
COMPLETIONS = [[1, 2, 3], [4], [2, 2], [1, 2, 3, 4, 5, 6]]
LENGTHS = [5, 2, 6, 9]


@pytest.fixture
def batch() -> Batch:
    return padded(PROMPTS, COMPLETIONS, pad=0)


@pytest.fixture
def pairs(batch) -> Pairs:
    other = padded(PROMPTS, [[9], [9] * 12, [9, 9], [9]], pad=0)
    return Pairs(batch.tokens_BT, batch.mask_BT, other.tokens_BT, other.mask_BT)


def test_a_sequence_is_as_long_as_its_prompt_and_its_completion(batch):
    assert batch.lengths()[""].tolist() == LENGTHS
    assert batch.size() == sum(LENGTHS)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_the_parts_hold_every_row_once_from_short_to_long(batch, rows):
    parts = batch.parts(rows)
    assert [len(part) for part in parts[:-1]] == [rows] * (len(parts) - 1)
    assert torch.cat(list(parts)).tolist() == [1, 0, 2, 3]


def test_rows_of_one_length_keep_their_order():
    batch = padded([[1]] * 50, [[2]] * 50, pad=0)
    assert torch.cat(list(batch.parts(7))).tolist() == list(range(50))


def test_a_part_ends_with_its_longest_sequence_and_loses_no_token(batch):
    part = batch[torch.tensor([1, 0])].trimmed()
    assert part.tokens_BT.tolist() == [[5, 4, 0, 0, 0], [5, 6, 1, 2, 3]]
    assert part.mask_BT.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    assert part.size() == LENGTHS[0] + LENGTHS[1]


def test_both_sides_of_a_pair_are_as_long_as_their_own_mask(pairs):
    assert pairs.lengths()["rejected_"].tolist() == [3, 13, 6, 4]
    assert torch.cat(list(pairs.parts(4))).tolist() == [0, 2, 3, 1]
    part = pairs[torch.tensor([0, 3])].trimmed()
    assert part.tokens_BT.shape == part.mask_BT.shape == (2, 9)
    assert part.rejected_BT.shape == part.rejected_mask_BT.shape == (2, 4)
    assert part.rejected_BT.tolist() == [[5, 6, 9, 0], [5, 6, 7, 9]]


@pytest.mark.parametrize("rows", [1, 2, 3, 256])
def test_a_score_is_the_same_whatever_its_rows_were_read_with_and_0_at_pad(rows):
    policy = Tabular(0)
    batch = padded([[1], [1, 2], [1]], [[2, 1, 2], [0], [2]], pad=0)
    run: Any = SimpleNamespace(config=SimpleNamespace(micro_batch=rows), meter=Meter())
    read_BT = Run.score(run, policy, batch)
    inside_BT = torch.arange(4) < batch.lengths()[""][:, None]
    with torch.no_grad():
        assert torch.allclose(read_BT, policy.logp(batch.tokens_BT) * batch.mask_BT)
    assert read_BT.dtype == torch.float64
    assert read_BT[~inside_BT].abs().sum() == 0
    assert run.meter.scored_tokens == batch.size()


def test_a_part_in_which_no_token_counts_still_passes_through_a_model(batch):
    nothing = Batch(batch.tokens_BT, torch.zeros_like(batch.mask_BT)).trimmed()
    assert nothing.tokens_BT.shape == (4, 2)


def test_distributions_at_every_token_are_trimmed_with_their_tokens(batch):
    @dataclass
    class Taught(Batch):
        teacher_BTV: Tensor

    part = Taught(batch.tokens_BT, batch.mask_BT, torch.zeros(*batch.tokens_BT.shape, 4))[torch.tensor([1])].trimmed()
    assert part.teacher_BTV.shape == (1, 2, 4)


def test_a_wide_vocabulary_has_logits_from_the_first_completion_on_and_the_same_log_probabilities_and_gradient():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    policy = Policy(Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=200, initializer_range=0.2)))
    batch = padded([[5, 6, 7, 8], [9, 8, 7, 6, 5], [1, 2, 3, 4]], [[4, 3], [2, 1, 11, 12], [150]], pad=0)
    assert policy.wide
    with policy.reading() as read:
        asked_BT = policy.logp(batch.tokens_BT, batch.mask_BT)
        all_BT = policy.logp(batch.tokens_BT) * batch.mask_BT
    assert [logits_BTV.shape[1] for _, logits_BTV in read] == [9 - 4, 9 - 1]
    assert torch.allclose(asked_BT, all_BT, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(x.sum(), list(policy.parameters())) for x in (asked_BT, all_BT)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
