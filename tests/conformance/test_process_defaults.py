"""A process's default type and device, which the user may set, change no result."""

import pytest
import torch

from synq_fast import ops
from synq_fast.testing import CASES
from tests.conformance.typical import differentiable, results_of, tensors_of
from tests.ops.backends import require
from tests.process_defaults import default_device, default_dtype


def run(name):
    """Results and gradients."""
    count = differentiable(name)
    tensors = [
        x.clone().requires_grad_() if i < count else x for i, x in enumerate(tensors_of(name))
    ]
    results = results_of(name, ops, tensors)
    trained = [y for y in results if y.requires_grad]
    if trained:
        sum(y.sum() for y in trained).backward()
    return [*(y.detach() for y in results), *(x.grad for x in tensors[:count])]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("defaults", [default_dtype, default_device])
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same(name, defaults, backend):
    require(backend)
    with ops.backend(backend):
        expected = run(name)
        with defaults():
            actual = run(name)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.device == theirs.device
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", ["gaussian", "butterworth", "ideal"])
def test_filters_are_built_the_same(kind, backend):
    """What is kept between calls must not come from the defaults of the first."""
    require(backend)
    x = torch.randn(2, 6, 7)
    for i, defaults in enumerate((default_dtype, default_device)):
        cutoff = 1.7123 + i / 7
        with ops.backend(backend), defaults():
            y = ops.low_pass(x, cutoff, kind=kind)
        assert y.dtype == torch.float32 and y.device == x.device
        with ops.backend("reference"):
            expected = ops.low_pass(x.double(), cutoff, kind=kind)
        torch.testing.assert_close(y.double(), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("defaults", [default_dtype, default_device])
def test_numbers_as_ranges(defaults):
    x = torch.randn(4, 6)
    expected = ops.fake_quantize(x, -1.0, 1.5, 4, axis=1)
    with defaults():
        assert torch.equal(ops.fake_quantize(x, -1.0, 1.5, 4, axis=1), expected)
