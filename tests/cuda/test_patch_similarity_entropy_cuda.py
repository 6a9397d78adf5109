"""Patch similarity entropy on a GPU: what only a GPU shows. Values are tested in tests/ops."""

import pytest
import torch

from synq_fast import ops
from synq_fast.runtime.precision import tensor_float32
from tests.kernel_cases import DTYPES
from tests.recording import recorded
from tests.similarity_cases import CASES, LARGE, assert_right, evaluate, make_tokens

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_against_float64(chosen, name, dtype) -> None:
    shape, options = (CASES | LARGE)[name]
    tokens = make_tokens(shape).to(dtype)
    result = evaluate(ops.patch_similarity_entropy, tokens.cuda(), **options)
    assert_right(result, tokens, **options)


@pytest.mark.parametrize("shape", [(32, 196, 192), (8, 196, 768), (1, 1100, 64)], ids=str)
def test_large(chosen, shape) -> None:
    tokens = make_tokens(shape)
    result = evaluate(ops.patch_similarity_entropy, tokens.cuda(), bandwidth=0.03)
    assert_right(result, tokens, bandwidth=0.03)


def test_tf32_is_not_used(chosen) -> None:
    tokens = make_tokens((2, 100, 96)).cuda()
    expected = evaluate(ops.patch_similarity_entropy, tokens)
    with tensor_float32(True):
        actual = evaluate(ops.patch_similarity_entropy, tokens)
    for mine, theirs in zip(actual, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_unaligned_tokens(chosen) -> None:
    buffer = torch.randn(2 * 20 * 32 + 1)
    tokens = buffer[1:].view(2, 20, 32)
    on_gpu = buffer.cuda()[1:].view(2, 20, 32).requires_grad_()
    entropy = ops.patch_similarity_entropy(on_gpu)
    (gradient,) = torch.autograd.grad(entropy[0] + 2 * entropy[1], on_gpu)
    assert_right((entropy.detach(), gradient), tokens)


def test_every_run_gives_the_same_bits(chosen) -> None:
    tokens = make_tokens((16, 196, 192)).cuda()
    first = evaluate(ops.patch_similarity_entropy, tokens)
    for _ in range(5):
        for mine, theirs in zip(evaluate(ops.patch_similarity_entropy, tokens), first, strict=True):
            assert torch.equal(mine, theirs)


def test_capture_in_a_cuda_graph(chosen) -> None:
    tokens = make_tokens((4, 49, 96)).cuda().requires_grad_()

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        entropy = ops.patch_similarity_entropy(tokens)
        (gradient,) = torch.autograd.grad(entropy.sum(), tokens)
        return entropy.detach(), gradient

    graph, captured = recorded(step)
    with torch.no_grad():
        tokens.copy_(make_tokens((4, 49, 96)))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert torch.equal(mine, theirs)


def test_peak_memory(chosen) -> None:
    """No tensor of images x points x similarities: that alone would be 49 MB here."""
    tokens = make_tokens((32, 196, 192)).cuda().requires_grad_()
    ops.patch_similarity_entropy(tokens).sum().backward()
    tokens.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.patch_similarity_entropy(tokens).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 30e6
