"""Inputs of the BN-statistics losses for every kernel, and the float64 values they are held to."""

from collections.abc import Iterator

import torch

from tests.tolerances import TOLERANCES, assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SHAPES = {
    (1, 1): "one element: no variance",
    (2, 1, 5): "one channel",
    (6, 5): "no inner dimension: channels are innermost",
    (70, 5): "channels innermost, rows folded, some left over",
    (5, 300): "more columns than one group holds",
    (4, 3, 2, 2): "pieces shorter than a vector",
    (3, 16, 4, 4): "pieces of exactly one vector",
    (3, 5, 7, 11): "odd everywhere",
    (2, 8, 28, 28): "an image",
    (2, 3, 70, 71): "pieces longer than a block",
}


def layouts(shape: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields data with a mean unlike zero, in every layout that a kernel reads differently."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) * 2 + 0.5
    yield "contiguous", x
    if x.ndim == 4:
        yield "channels_last", x.to(memory_format=torch.channels_last)
        yield "transposed", x.transpose(0, 3).contiguous().transpose(0, 3)
        yield "strided", torch.stack([x, x], -1)[..., 0]


def running(channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a stored mean and variance."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(channels, generator=generator), torch.rand(channels, generator=generator) + 1


def exact(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns mean_loss, var_loss and the gradients of each in x, in float64 closed form."""
    x, mean, var = (value.detach().cpu().double() for value in (x, mean, var))
    channels, count = x.shape[1], x.numel() / x.shape[1]
    dims = [d for d in range(x.ndim) if d != 1]
    own_var, own_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    mean_error = own_mean - mean.view(own_mean.shape)
    var_error = own_var - var.view(own_mean.shape)
    of_mean = (2 / channels / count * mean_error).expand_as(x)
    of_var = 4 / channels / count * var_error * (x - own_mean)
    return mean_error.square().mean(), var_error.square().mean(), of_mean, of_var


def check_gradient(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Asserts a gradient of the given type, relative to its largest element."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    largest = max(expected.abs().max().item(), 1e-30)
    rounding = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 2e-6)
    # What is far below the typical gradient is rounded: to a unit of x, to float16's least value.
    least = 2e-6 / actual.numel() + (6e-8 if dtype == torch.float16 else 0.0)
    difference = (actual.detach().cpu().double() - expected).abs().max().item()
    assert difference <= rounding * largest + least


def check_losses(
    actual: tuple[torch.Tensor, torch.Tensor],
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
) -> None:
    """Asserts both losses."""
    for value, wanted in zip(actual, exact(x, mean, var)[:2], strict=True):
        assert value.shape == ()
        assert value.dtype == torch.float32
        factor = max(1.0, TOLERANCES["statistics_loss"].rtol / TOLERANCES["statistics_loss"].atol)
        assert_close(value.detach().cpu(), wanted, "statistics_loss", factor=factor)
