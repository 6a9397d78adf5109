"""Patch similarity entropy: an oracle with loops, gradients, invariances, edges, every backend."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.testing.cases.patch_similarity_entropy import SHAPES
from synq_fast.testing.cases.patch_similarity_entropy import make_tokens as tokens_of
from tests.ops.backends import BACKENDS, require
from tests.tolerances import assert_close

WIDE = {"bandwidth": 0.2}  # smooth enough for finite differences


def make_tokens(shape):
    return tokens_of(*shape)


def evaluate(function, tokens, **options):
    """Entropies, and the gradient of their sum with weights 1, 2, 3 ..."""
    leaf = tokens.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    entropy = function(leaf, **options)
    weight = torch.arange(1, len(entropy) + 1, device=entropy.device, dtype=entropy.dtype)
    (entropy * weight).sum().backward()
    return entropy.detach(), leaf.grad


def oracle(tokens, points=10, bandwidth=0.01, eps=1e-4):
    """The definition, one number at a time."""
    images = tokens.double().tolist()
    similarities = []
    for image in images:
        lengths = [max(math.sqrt(sum(v * v for v in token)), 1e-8) for token in image]
        similarities.append(
            [
                sum(v * w for v, w in zip(first, second, strict=True)) / (length * other)
                for first, length in zip(image, lengths, strict=True)
                for second, other in zip(image, lengths, strict=True)
            ]
        )
    low, high = min(map(min, similarities)), max(map(max, similarities))
    step = (high - low) / (points - 1)
    entropies = []
    for values in similarities:
        heights = []
        for i in range(points):
            deviations = [(s - low - i * step) / bandwidth for s in values]
            total = sum(math.exp(-0.5 * d * d) for d in deviations)
            density = total / len(values) / (bandwidth * math.sqrt(2 * math.pi)) + eps
            heights.append(-density * math.log(density))
        areas = [(a + b) / 2 * step for a, b in itertools.pairwise(heights)]
        entropies.append(sum(areas))
    return torch.tensor(entropies, dtype=torch.float64)


@pytest.fixture
def device(backend, place):
    require(backend)
    with ops.backend(backend):
        yield place


on_every_backend = pytest.mark.parametrize(("backend", "place"), BACKENDS)


@pytest.mark.parametrize("name", list(SHAPES)[:7])
def test_reference_is_the_definition(name):
    shape, options = SHAPES[name]
    tokens = make_tokens(shape).double()
    actual = reference.patch_similarity_entropy(tokens, **options)
    assert_close(actual, oracle(tokens, **options), "float64")


def test_sign_and_size():
    """Alike patches have less entropy than varied ones; two far peaks have a known density."""
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    density = 0.5 / (0.01 * math.sqrt(2 * math.pi)) + 1e-4
    expected = -density * math.log(density) + -1e-4 * math.log(1e-4) * 8
    assert_close(ops.patch_similarity_entropy(tokens), [expected / 9], "patch_entropy", factor=10)
    alike = torch.cat([torch.ones(1, 8, 4) + 0.01 * torch.randn(1, 8, 4), torch.randn(1, 8, 4)])
    entropy = ops.patch_similarity_entropy(alike, bandwidth=0.1)
    assert entropy[0] < entropy[1]


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 6, 2), (3, 2, 5)])
def test_gradcheck(shape):
    """Finite differences must not move the points: an image of its own holds the range."""
    tokens = make_tokens(shape).double().requires_grad_()
    ends = torch.zeros(1, *shape[1:], dtype=torch.float64)
    ends[0, 0, 0], ends[0, 1, 0] = 1.0, -1.0

    def entropy(tokens):
        return reference.patch_similarity_entropy(torch.cat([ends, tokens]), **WIDE)

    assert torch.autograd.gradcheck(entropy, tokens)
    assert torch.autograd.grad(entropy(tokens).sum(), tokens)[0].any()


@on_every_backend
def test_each_image_has_its_own_gradient(device):
    tokens = make_tokens((3, 20, 8)).to(device).requires_grad_()
    entropy = ops.patch_similarity_entropy(tokens, **WIDE)
    for image in range(3):
        (gradient,) = torch.autograd.grad(entropy[image], tokens, retain_graph=True)
        assert gradient[image].any()
        assert not gradient[[i for i in range(3) if i != image]].any()


@on_every_backend
def test_ascent_raises_the_entropy(device):
    tokens = (torch.ones(2, 12, 6) + 0.3 * torch.randn(2, 12, 6)).to(device).requires_grad_()
    first = ops.patch_similarity_entropy(tokens, bandwidth=0.05).mean()
    for _ in range(20):
        loss = -ops.patch_similarity_entropy(tokens, bandwidth=0.05).mean()
        (gradient,) = torch.autograd.grad(loss, tokens)
        with torch.no_grad():
            tokens -= 0.5 * gradient
    assert ops.patch_similarity_entropy(tokens, bandwidth=0.05).mean() > first + 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_invariances(batch, count, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, count, channels, generator=generator)
    entropy, gradient = evaluate(ops.patch_similarity_entropy, tokens, **WIDE)
    close = partial(assert_close, kind="patch_entropy", factor=2.0)

    order = torch.randperm(count, generator=generator)
    permuted, moved = evaluate(ops.patch_similarity_entropy, tokens[:, order], **WIDE)
    close(permuted, entropy)
    assert (moved - gradient[:, order]).norm() <= 1e-3 * gradient.norm() + 1e-4

    # Powers of two scale without rounding.
    scale = 2.0 ** torch.randint(-20, 20, (batch, count, 1), generator=generator)
    scaled, slower = evaluate(ops.patch_similarity_entropy, tokens * scale, **WIDE)
    close(scaled, entropy)
    assert (slower * scale - gradient).norm() <= 1e-3 * gradient.norm() + 1e-4
    # A longer token is the same token: the gradient is orthogonal to it.
    along = (gradient * tokens).sum(-1)
    assert along.norm() <= 1e-3 * (gradient.norm() * tokens.norm()) + 1e-4

    turned = tokens @ torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
    close(ops.patch_similarity_entropy(turned, **WIDE), entropy)
    close(ops.patch_similarity_entropy(tokens.flip(0), **WIDE), entropy.flip(0))


@on_every_backend
def test_zero_and_tiny_tokens(device):
    tokens = make_tokens((2, 9, 4))
    tokens[0, 3] = 0
    tokens[1, 5] = 1e-10 * torch.randn(4)
    tokens[1, 6] *= 1e-30
    for options in ({}, WIDE):
        actual = ops.patch_similarity_entropy(tokens.to(device), **options).cpu()
        assert_close(actual, oracle(tokens, **options), "patch_entropy", factor=2)
    result = evaluate(ops.patch_similarity_entropy, tokens.to(device), **WIDE)
    gradient = result[1].cpu().double()
    _, expected = evaluate(reference.patch_similarity_entropy, tokens.double(), **WIDE)
    assert gradient[0, 3].norm() > 1e5  # a zero token is divided by 1e-8
    for b in range(2):
        for i in range(9):
            distance = (gradient[b, i] - expected[b, i]).norm()
            assert distance <= 1e-3 * expected[b, i].norm() + 1e-5 / tokens[b, i].norm().clamp(1e-8)


def test_second_derivative_is_refused_but_the_reference_has_one():
    require("cpu")
    tokens = make_tokens((1, 5, 3)).requires_grad_()
    entropy = ops.patch_similarity_entropy(tokens, **WIDE)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        torch.autograd.grad(entropy.sum(), tokens, create_graph=True)
    with ops.backend("reference"):
        entropy = ops.patch_similarity_entropy(tokens, **WIDE)
    (gradient,) = torch.autograd.grad(entropy.sum(), tokens, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), tokens)[0].any()


TOKENS = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens must be a torch.Tensor, got NoneType"),
        ({"tokens": TOKENS.int()}, TypeError, "tokens must be float16"),
        ({"tokens": TOKENS[0]}, ValueError, r"tokens must have shape \(B, N, C\), got \(3, 4\)"),
        ({"tokens": TOKENS[:, :0]}, ValueError, r"at least one token.*got \(2, 0, 4\)"),
        ({"tokens": TOKENS[..., :0]}, ValueError, r"with one channel, got \(2, 3, 0\)"),
        ({"points": 1}, ValueError, "points must be from 2 to 256, got 1"),
        ({"points": 257}, ValueError, "points must be from 2 to 256, got 257"),
        ({"points": 2.0}, TypeError, "points must be an int"),
        ({"bandwidth": 0}, ValueError, "bandwidth must be above 0, got 0"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth must be finite"),
        ({"eps": -1.0}, ValueError, "eps must be above 0, got -1"),
        ({"eps": "1"}, TypeError, "eps must be a number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.patch_similarity_entropy(**({"tokens": TOKENS} | arguments))


def test_bad_arguments_of_a_direct_call():
    tokens, numbers = torch.ones(2, 3, 4), (10, 0.1, 1e-4)
    for arguments, name in (
        ((tokens.double(), *numbers), "tokens"),
        ((tokens[0], *numbers), "tokens"),
        ((tokens, 1, 0.1, 1e-4), "points"),
        ((tokens, 10, 0.0, 1e-4), "bandwidth"),
        ((tokens, 10, 0.1, 0.0), "eps"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"\b{name} (is|must)"):
            torch.ops.synq_fast.patch_similarity_entropy(*arguments)


@on_every_backend
def test_equal_similarities_have_no_entropy_and_no_gradient(device):
    for tokens in (torch.zeros(2, 5, 3), torch.tensor([[[2.0, 0.0]] * 6]), torch.ones(3, 1, 1)):
        entropy, gradient = evaluate(ops.patch_similarity_entropy, tokens.to(device))
        assert torch.equal(entropy.cpu(), torch.zeros(len(tokens)))
        assert torch.equal(gradient.cpu(), torch.zeros_like(tokens))
