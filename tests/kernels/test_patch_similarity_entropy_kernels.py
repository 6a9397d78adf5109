"""The Triton kernels of the patch similarity entropy, run by Triton's interpreter."""

import math

import pytest
import torch

from synq_fast import ops, reference
from tests.similarity_cases import CASES, assert_right, evaluate, make_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

# Tokens fill two tiles of similarities, or two splits of their sum; channels, two passes of a row.
TILED = {
    "two tiles each way, channels that no tile divides": ((2, 70, 67), {"bandwidth": 0.05}),
    "more channels than are read at a time": ((1, 5, 1030), {"bandwidth": 0.05}),
}


@pytest.fixture(autouse=True)
def triton_backend():
    with ops.backend("triton"):
        yield


@pytest.mark.parametrize("name", [*CASES, *TILED])
def test_against_float64(name):
    shape, options = (CASES | TILED)[name]
    tokens = make_tokens(shape)
    result = evaluate(ops.patch_similarity_entropy, tokens, **options)
    assert_right(result, tokens, **options)
    with torch.no_grad():
        assert torch.equal(ops.patch_similarity_entropy(tokens, **options), result[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_upcast(dtype):
    tokens = make_tokens((2, 9, 5)).to(dtype)
    entropy, gradient = evaluate(ops.patch_similarity_entropy, tokens)
    wide, slope = evaluate(ops.patch_similarity_entropy, tokens.float())
    assert torch.equal(entropy, wide)
    assert torch.equal(gradient, slope.to(dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value):
    tokens = make_tokens((2, 66, 3))
    tokens[1, 65, 2] = value
    for result in evaluate(ops.patch_similarity_entropy, tokens):
        assert result.isnan().all()


def test_zero_and_tiny_tokens():
    tokens = make_tokens((2, 7, 4))
    tokens[0, 3] = 0
    tokens[1, 5] = 1e-10 * torch.randn(4)
    entropy, gradient = evaluate(ops.patch_similarity_entropy, tokens, bandwidth=0.2)
    with ops.backend("reference"):
        expected, slope = evaluate(
            reference.patch_similarity_entropy, tokens.double(), bandwidth=0.2
        )
    assert (entropy - expected).abs().max() < 1e-4
    error = (gradient - slope).norm(dim=-1)
    assert (error <= 1e-3 * slope.norm(dim=-1) + 1e-5 / tokens.norm(dim=-1).clamp(1e-8)).all()


def test_empty_batch_and_strides():
    assert evaluate(ops.patch_similarity_entropy, torch.empty(0, 5, 3))[1].shape == (0, 5, 3)
    tokens = torch.randn(2, 6, 4)[:, 1:]
    expected = ops.patch_similarity_entropy(tokens.contiguous())
    assert torch.equal(ops.patch_similarity_entropy(tokens), expected)


def test_opcheck_and_direct_calls():
    tokens = make_tokens((1, 3, 2)).requires_grad_()
    library = torch.ops.synq_fast
    numbers = (4, 0.1, 1e-4)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op in (library.patch_similarity_entropy, library.patch_similarity_entropy_with_gradient):
        torch.library.opcheck(op.triton, (tokens, *numbers), test_utils=checks)
    alone = library.patch_similarity_entropy.triton(tokens, *numbers)
    entropy, gradient = library.patch_similarity_entropy_with_gradient.triton(tokens, *numbers)
    assert torch.equal(alone, entropy)
    for result in (alone, entropy):
        assert torch.equal(torch.autograd.grad(result.sum(), tokens)[0], gradient)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        result = library.patch_similarity_entropy.triton(tokens, *numbers)
        torch.autograd.grad(result.sum(), tokens, create_graph=True)
