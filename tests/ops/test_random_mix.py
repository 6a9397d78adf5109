"""What a random mixture is; the conformance suite compares the backends."""

import itertools

import pytest
import torch

from synq_fast import ops
from synq_fast.reference._philox import draws
from tests.ops.backends import assert_same, device  # noqa: F401  (a fixture)


def test_by_hand(device):  # noqa: F811
    # The first words of the seed 0 are 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    a = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device, requires_grad=True)
    b = torch.tensor([-1.0, -2.0, -3.0, -4.0], device=device, requires_grad=True)
    for keep, signs in ((0.3, (-1, -1, -1, -1)), (0.5, (1, -1, -1, -1)), (0.8, (1, -1, 1, 1))):
        y = ops.random_mix(a, b, keep, 0)
        kept = torch.tensor(signs, device=device) > 0
        assert_same(y.detach(), torch.where(kept, a, b).detach())
        incoming = torch.tensor([5.0, 6.0, 7.0, 8.0], device=device)
        of_a, of_b = torch.autograd.grad(y, (a, b), incoming)
        assert_same(of_a, torch.where(kept, incoming, 0.0))
        assert_same(of_b, torch.where(kept, 0.0, incoming))


def test_it_draws_as_the_learned_grid_does(device):  # noqa: F811
    x = torch.randn(2, 6, 5, 7, device=device).to(memory_format=torch.channels_last)
    quantized = ops.fake_quantize_learned(x, 3.0, 0.5, 4)
    dropped = ops.fake_quantize_learned(x, 3.0, 0.5, 4, keep=0.4, seed=77)
    assert_same(ops.random_mix(quantized, x, 0.4, 77), dropped)


def test_draws_follow_the_memory_of_the_first(device):  # noqa: F811
    a, b = torch.randn(2, 3, 4, 5, 2, device=device).unbind()
    last = a.to(memory_format=torch.channels_last)
    kept = (draws(torch.tensor(5, device=device), a.numel()) < 2**23).view(3, 5, 2, 4)
    expected = torch.where(kept.permute(0, 3, 1, 2), a, b)
    assert_same(ops.random_mix(last, b, 0.5, 5), expected)
    leaf = last.clone().requires_grad_()
    # A gradient that lies otherwise.
    gradient = torch.randn(3, 4, 5, 2, device=device)
    (of_a,) = torch.autograd.grad(ops.random_mix(leaf, b, 0.5, 5), leaf, gradient)
    assert of_a.stride() == last.stride()
    assert_same(of_a, torch.where(kept.permute(0, 3, 1, 2), gradient, 0.0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(7, 3, 5, 2), (6, 4, 3, 8)], ids=str)
def test_parts_draw_what_the_whole_draws(device, shape, memory_format):  # noqa: F811
    """Rows of 30 elements begin within a counter, rows of 96 with one."""
    a, b, gradient = torch.randn(3, *shape, device=device).unbind()
    a = a.to(memory_format=memory_format)
    rows = a[0].numel()

    def both(rows_of: slice, offset: int) -> list[torch.Tensor]:
        x, other = (v[rows_of].clone().requires_grad_() for v in (a, b))
        scale = torch.tensor(3.0, device=device, requires_grad=True)
        y = ops.random_mix(x, other, 0.4, 77, offset=offset)
        z = ops.fake_quantize_learned(x, scale, 0.5, 4, keep=0.3, seed=78, offset=offset)
        incoming = gradient[rows_of]
        of_both = torch.autograd.grad(y, (x, other), incoming)
        of_x, of_scale = torch.autograd.grad(z, (x, scale), incoming)
        return [y.detach(), z.detach(), *of_both, of_x, of_scale.view(1).double()]

    *whole, of_scale = both(slice(None), 0)
    cuts = [0, 1, 4, shape[0]]
    parts = [both(slice(*ends), ends[0] * rows) for ends in itertools.pairwise(cuts)]
    *values, sums = zip(*parts, strict=True)
    for found, expected in zip(values, whole, strict=True):
        assert_same(torch.cat(found), expected)
    torch.testing.assert_close(torch.cat(sums).sum(0, keepdim=True), of_scale, rtol=1e-5, atol=1e-5)
    assert not torch.equal(both(slice(1, 4), 0)[0], parts[1][0])


def test_nothing_but_the_seed_is_saved(device):  # noqa: F811
    a, b = (torch.randn(100, device=device, requires_grad=True) for _ in range(2))
    seed, saved = torch.tensor(3, device=device), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        ops.random_mix(a, b, 0.5, seed)
    if ops.current_backend() != "reference":
        assert [x.data_ptr() for x in saved] == [seed.data_ptr()]


@pytest.mark.compile
def test_compiled_for_any_size_and_seed():
    torch.compiler.reset()
    compiled = torch.compile(ops.random_mix, fullgraph=True, backend="aot_eager", dynamic=True)
    for size, seed in ((3, 1), (4, 2), (5, -7)):
        a, b = torch.randn(2, size, 2, 3, 4).unbind()
        a = a.to(memory_format=torch.channels_last)
        found = []
        for function in (ops.random_mix, compiled):
            leaves = a.clone().requires_grad_(), b.clone().requires_grad_()
            y = function(*leaves, 0.5, torch.tensor(seed))
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
        for mine, theirs in zip(*found, strict=True):
            assert_same(mine, theirs)
            assert mine.stride() == theirs.stride()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_arguments_are_checked(backend):
    a = torch.zeros(3)
    with ops.backend(backend):
        with pytest.raises(TypeError, match=r"a must be a torch\.Tensor, got list"):
            ops.random_mix([0.0], a, 0.5, 1)
        with pytest.raises(TypeError, match="a must be float16, bfloat16, float32 or float64"):
            ops.random_mix(a.int(), a.int(), 0.5, 1)
        with pytest.raises(ValueError, match=r"b must have shape of a = \(3,\), got \(1,\)"):
            ops.random_mix(a, torch.zeros(1), 0.5, 1)
        with pytest.raises(TypeError, match=r"b must be of the type of a, torch\.float32"):
            ops.random_mix(a, a.half(), 0.5, 1)
        with pytest.raises(ValueError, match="keep must be at most 1, got 2"):
            ops.random_mix(a, a, 2, 1)
        with pytest.raises(TypeError, match=r"an int or an int64 tensor, got 0\.5"):
            ops.random_mix(a, a, 0.5, 0.5)
        with pytest.raises(ValueError, match="needs seed"):
            ops.random_mix(a, a, 0.5, None)
        for offset in (0.5, None):
            with pytest.raises(TypeError, match="offset must be an int, got"):
                ops.random_mix(a, a, 0.5, 1, offset=offset)
        for offset in (-1, 2**62, 2**64):
            with pytest.raises(ValueError, match="offset must be an element's place, from 0"):
                ops.random_mix(a, a, 0.5, 1, offset=offset)
        assert ops.random_mix(a, a, 0.5, 1, offset=2**62 - 1).shape == a.shape
        with pytest.raises(TypeError, match="seed must be int64"):
            ops.random_mix(a, a, 0.5, torch.tensor(0.0))
