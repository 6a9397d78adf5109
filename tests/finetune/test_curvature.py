"""Weights of a block's distances by the curvature of the logits' divergence."""

import pytest
import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.finetune.reconstruction import (
    Blocks,
    BlockValues,
    Cache,
    NetworkValues,
    Reconstruction,
    TrainedBlock,
    curvature_weights,
    reconstruction_loop,
)
from synq_fast.graph.blocks import subnetwork
from synq_fast.quant import BitWidths, folded
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.tiny import tiny_images, tiny_pair, tiny_recipe

CPU = torch.device("cpu")


def values(dz: Tensor, targets: Tensor) -> BlockValues:
    return BlockValues(targets + dz, targets, targets)


def weights(held: BlockValues, rest, **options) -> Tensor:
    return curvature_weights(
        held, nn.Identity(), rest, **{"batch_size": 4, "device": CPU, **options}
    )


def slopes(held: BlockValues, rest) -> Tensor:
    """sum(g dz) / sum(dz^2), an image at a time in float64."""
    above, below = 0.0, 0.0
    for z_q, z_t in zip(held.inputs.double(), held.targets.double(), strict=True):
        z_q.requires_grad_()
        p = rest(z_t[None]).softmax(1)
        q = rest(z_q[None]).softmax(1)
        (g,) = torch.autograd.grad((p * (p / q).log()).sum(), z_q)
        dz = z_q.detach() - z_t
        above, below = above + g * dz, below + dz.square()
    return above / below


class Rest(nn.Module):
    """From maps (B, 3, 2, 2) to logits, not linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, z: Tensor) -> Tensor:
        first, last = self.first.to(z.dtype), self.last.to(z.dtype)
        return last(torch.tanh(first(z.flatten(1))))


def drawn(size: float, count: int = 10) -> BlockValues:
    g = torch.Generator().manual_seed(1)
    targets = torch.randn(count, 3, 2, 2, generator=g)
    return values(size * torch.randn(count, 3, 2, 2, generator=g), targets)


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_the_weights_are_the_formulas(batch_size):
    held, rest = drawn(0.5), Rest()
    found = weights(held, rest, batch_size=batch_size)
    assert found.dtype == torch.float32 and found.shape == (3, 2, 2)
    expected = slopes(held, Rest()).clamp_min(0)
    assert (expected == 0).any() and (expected > 0).any()
    torch.testing.assert_close(found.double(), expected / expected.mean(), rtol=1e-4, atol=1e-5)


def test_of_small_differences_it_is_the_diagonal_of_the_curvature():
    """Of logits A z the Hessian of the divergence is A^T (diag p - p p^T) A."""
    g = torch.Generator().manual_seed(2)
    matrix = torch.randn(4, 5, generator=g)
    target = torch.randn(1, 5, generator=g)
    p = (target @ matrix.T).softmax(1)[0]
    hessian = matrix.T @ (p.diag() - p.outer(p)) @ matrix
    # One element differs in each image, so that no other has a part in its slope.
    held = values(1e-2 * torch.eye(5), target.expand(5, -1))
    found = weights(held, lambda z: z @ matrix.T)
    expected = hessian.diagonal() / hessian.diagonal().mean()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)


def test_where_nothing_differs_all_count_alike():
    held = drawn(0.0)
    assert torch.equal(weights(held, Rest()), torch.ones(3, 2, 2))
    blind = weights(drawn(1.0), lambda z: z.flatten(1)[:, :2] * 0)
    assert torch.equal(blind, torch.ones(3, 2, 2))


RECIPE = Blocks(steps=9, batch_size=4, rounding="straight", weight_learning_rate=3e-3)


def fresh(given=None, path=None, curvature=True):
    learned = {"quantization__weight_range": "learned", "quantization__learn_ranges": True}
    graph, student, structure = tiny_pair(tiny_recipe(**learned), BitWidths(2, 4))
    cuts = structure.blocks
    teacher = folded(graph, {name for b in cuts for name in (b.entry, b.exit)})
    held = NetworkValues(
        teacher, student, cuts, lambda: tiny_images(10), Cache("memory", CPU, None), 8, ends=False
    )
    part = subnetwork(student, cuts[1].entry, cuts[1].exit)
    rest = subnetwork(teacher, cuts[1].exit, cuts[-1].exit)
    work = Reconstruction(
        TrainedBlock(part, "straight"),
        lambda: held.of(1),
        RECIPE,
        seed=0,
        index=1,
        device=CPU,
        curvature=(given or (lambda v: curvature_weights(v, part, rest, batch_size=8, device=CPU)))
        if curvature
        else None,
    )
    checkpoint = None if path is None else CheckpointFile(path, 0)
    return student, work, reconstruction_loop(work, checkpoint=checkpoint)


def test_the_loss_is_weighted():
    _, work, _ = fresh()
    inputs = work.prepare(0)
    assert work.weights is not None and work.weights.std() > 0.1
    _, _, target, *_ = inputs
    local = work(*inputs)[0]
    _, plain, _ = fresh(curvature=False)
    quantized, given, _, seeds = plain.prepare(0)
    own, *others = seeds.unbind()
    mixed = ops.random_mix(quantized, given, RECIPE.mix, own)
    y, _ = plain.block(mixed, RECIPE.keep, others)
    difference = (y.detach() - target).double().square()
    expected = (work.weights.double() * difference).mean() * target.shape[1]
    assert local.item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_weights_train_as_none_do():
    one, _, loop = fresh(lambda v: torch.ones_like(v.targets[0]))
    loop.run()
    other, _, loop = fresh(curvature=False)
    loop.run()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_resumed_block_has_the_weights_of_its_start(tmp_path):
    student, work, loop = fresh(path=tmp_path / "a.safetensors")
    loop.run()
    _, _, loop = fresh(path=tmp_path / "b.safetensors")
    for _ in range(4):
        loop.advance()
    loop.save()

    def again(_):
        raise AssertionError("asked again")

    other, resumed, loop = fresh(again, path=tmp_path / "b.safetensors")
    assert loop.resume() and loop.done == 4
    loop.run()
    assert torch.equal(resumed.weights, work.weights)
    for name, value in student.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
