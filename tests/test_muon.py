"""Muon for stacks of matrices is torch's Muon for each of them."""

import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz

from harness.muon import A, B, C, StackedMuon, orthogonalised

N, R, COLUMNS = 3, 12, 8


def gradients(steps, shape=(N, R, COLUMNS)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


class InFloat32(torch.Tensor):
    """A matrix that torch's iteration, which is written for bfloat16, leaves in float32."""

    def bfloat16(self):
        return self.clone()


def moved(optimizer, parameters, grads):
    """The parameters' movement in each step, seen as one stack."""
    out = []
    for grad in grads:
        before = torch.cat([p.detach().reshape(-1) for p in parameters])
        for p, g in zip(parameters, grad, strict=True):
            p.grad = g.clone()
        optimizer.step()
        out.append(torch.cat([p.detach().reshape(-1) for p in parameters]) - before)
    return out


def torchs(matrices, grads, steps):
    parameters = [torch.nn.Parameter(m.clone()) for m in matrices]
    return moved(
        torch.optim.Muon(parameters, lr=0.1, weight_decay=0.0, ns_steps=steps, adjust_lr_fn="original"), parameters, grads
    )


@pytest.mark.parametrize("shape", [(N, R, COLUMNS), (N, COLUMNS, R), (N, R, R)])
@pytest.mark.parametrize("steps", [3, 5])
def test_each_matrix_of_a_stack_moves_as_torchs_muon_moves_it(shape, steps):
    grads, start = gradients(4, shape), gradients(1, shape)[0]
    stack = torch.nn.Parameter(start.clone())
    ours = moved(StackedMuon([{"params": [stack]}], lr=0.1, ns_steps=steps), [stack], [[g] for g in grads])
    theirs = torchs(start, [list(g) for g in grads], steps)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.04 * b.norm()  # theirs is in bfloat16


def test_halves_that_lie_on_top_of_each_other_are_matrices_of_their_own():
    grads, start = gradients(3), gradients(1)[0]
    stack = torch.nn.Parameter(start.clone())
    ours = moved(StackedMuon([{"params": [stack], "parts": 2}], lr=0.1, ns_steps=3), [stack], [[g] for g in grads])

    def halves(x_NRC):
        return [half for matrix in x_NRC for half in matrix.chunk(2)]

    theirs = torchs(halves(start), [halves(g) for g in grads], 3)
    whole = torchs(start, [list(g) for g in grads], 3)
    for a, b, w in zip(ours, theirs, whole, strict=True):
        assert (a - b).norm() < 0.04 * b.norm()
        assert (a - w).norm() > 0.1 * w.norm()


@pytest.mark.parametrize("shape", [(N, R, COLUMNS), (N, COLUMNS, R)])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_the_iteration_is_torchs_in_float32(shape, steps):
    x_NRC = gradients(1, shape)[0]
    for x_RC, found_RC in zip(x_NRC, orthogonalised(x_NRC, steps), strict=True):
        expected_RC = _zeropower_via_newtonschulz(x_RC.as_subclass(InFloat32), (A, B, C), steps, 1e-7)
        assert expected_RC.dtype == torch.float32
        assert torch.allclose(found_RC, expected_RC.as_subclass(torch.Tensor), atol=1e-5)


@pytest.mark.parametrize("shape", [(N, R, COLUMNS), (N, COLUMNS, R)])
def test_singular_values_are_brought_near_1_and_singular_vectors_kept(shape):
    x_NRC = gradients(1, shape)[0]
    found_NRC = orthogonalised(x_NRC, 5)
    singular_NS = torch.linalg.svdvals(found_NRC)
    assert singular_NS.min() > 0.5
    assert singular_NS.max() < 1.3
    u, _, vh = torch.linalg.svd(x_NRC, full_matrices=False)
    inside = u.mT @ found_NRC @ vh.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    assert torch.allclose(orthogonalised(100 * x_NRC, 5), found_NRC, atol=1e-5)


def test_a_matrix_without_gradient_stays_where_it_is():
    stack, other = torch.nn.Parameter(torch.ones(N, R, COLUMNS)), torch.nn.Parameter(torch.ones(N, R, COLUMNS))
    stack.grad = torch.zeros_like(stack)
    stack.grad[0] = gradients(1)[0][0]
    StackedMuon([{"params": [stack, other]}], lr=0.1, ns_steps=3).step()
    assert (stack[0] != 1).all()
    assert (stack[1:] == 1).all()
    assert (other == 1).all()


def test_every_weight_of_a_mixture_has_one_optimizer_and_experts_go_to_stacks():
    import tiny

    from harness.pretrain import muon_and_adamw

    policy = tiny.policy("deepseek")
    names = {id(p): name for name, p in policy.named_parameters()}
    kinds = {
        type(optimizer).__name__: [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        for optimizer in muon_and_adamw(policy, tiny.models.presets()["deepseek"])
    }
    assert sorted(name for found in kinds.values() for name in found) == sorted(names.values())
    assert all(".experts." in name for name in kinds["StackedMuon"])
    assert len(kinds["StackedMuon"]) == 3 * 2
    assert not any(word in name for name in kinds["Muon"] for word in ("embed", "norm", "gate.weight", "lm_head"))
    assert sum("mlp.gate.weight" in name for name in kinds["AdamW"]) == 3
