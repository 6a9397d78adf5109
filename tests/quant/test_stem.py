"""The first convolution's gradient as a sub-pixel convolution, against autograd's."""

import pytest
import torch
from torch import nn

from synq_fast.quant.stem import FrozenStem


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(7, 2, 3), (3, 2, 1), (3, 2, 0), (2, 2, 0), (5, 3, 2), (4, 4, 0), (11, 4, 2), (3, 3, 1)],
)
@pytest.mark.parametrize("size", [(24, 24), (23, 29), (12, 15)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_convolution(kernel, stride, padding, size, bias):
    convolution = nn.Conv2d(3, 8, kernel, stride, padding, bias=bias).requires_grad_(False)
    assert FrozenStem.replaceable(convolution)
    x = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = convolution(x)
    slope = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, x, slope)[0]
    result = FrozenStem(convolution)(x)
    assert torch.equal(result, expected)
    torch.testing.assert_close(torch.autograd.grad(result, x, slope)[0], wanted)


def test_a_convolution_that_trains_stays():
    assert not FrozenStem.replaceable(nn.Conv2d(3, 8, 7, 2, 3))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(16, 8, 3, 2),
        nn.Conv2d(3, 8, 3, 2, padding_mode="reflect"),
        nn.Conv2d(3, 8, 3, 2, dilation=2),
        nn.Conv2d(3, 9, 3, 2, groups=3),
        nn.Conv2d(3, 8, (3, 5), 2),
        nn.Conv2d(3, 8, 3, (2, 1)),
        nn.Conv2d(3, 8, 1, 2, padding=1),
        nn.Conv2d(3, 8, 3, padding="same"),
        nn.Linear(3, 4),
        None,
    ],
    ids=str,
)
def test_other_layers_stay(module):
    if module is not None:
        module.requires_grad_(False)
    assert not FrozenStem.replaceable(module)
