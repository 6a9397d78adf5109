"""Addresses above 2^31: each op with kernels on the CPU, on a tensor of 2^31 + 5 elements or more.

These need up to 16 GiB and minutes, so they run with SYNQ_FAST_HUGE=1 only. The same checks run
always on small tensors.
"""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.reference._philox import philox

HUGE = 2**31 + 5
SMALL = 70_001
HALF = torch.bfloat16
BITS = 4
LOW, HIGH = torch.tensor(-1.5), torch.tensor(1.75)
# A prime, so that an address that wraps at a power of two meets another value.
PERIOD = 65_521
WINDOW = 1 << 16


def filled(*shape: int) -> torch.Tensor:
    """Noise that repeats, with an end of its own."""
    x = torch.empty(shape, dtype=HALF)
    flat = x.view(-1)
    whole = flat.numel() // PERIOD
    flat[: whole * PERIOD].view(whole, PERIOD).copy_(torch.randn(PERIOD))
    flat[whole * PERIOD :] = torch.randn(flat.numel() - whole * PERIOD).to(HALF)
    return x


def windows(elements: int) -> Iterator[slice]:
    """Both ends, 40 places between them, and the places where 32-bit numbers end."""
    last = max(elements - WINDOW, 0)
    edges = [2**30, 2**31 - WINDOW // 2, 2**31 - WINDOW]
    for start in sorted({last, *(last * i // 40 for i in range(40)), *edges}):
        if start <= last:
            yield slice(start, start + WINDOW)


def rows_of(elements: int, size: int) -> int:
    return -(-elements // size)


def check_fake_quantize(elements: int) -> None:
    x = filled(elements)
    y = ops.fake_quantize(x, LOW, HIGH, BITS)
    for window in windows(elements):
        assert torch.equal(y[window], reference.fake_quantize(x[window], LOW, HIGH, BITS)), window


def check_fake_quantize_per_channel(elements: int) -> None:
    x = filled(3, rows_of(elements, 3))
    low, high = torch.tensor([-1.0, -1.5, -0.5]), torch.tensor([1.0, 2.0, 1.5])
    y = ops.fake_quantize(x, low, high, BITS, axis=0)
    for window in windows(x.shape[1]):
        expected = reference.fake_quantize(x[:, window], low, high, BITS, axis=0)
        assert torch.equal(y[:, window], expected), window


def check_fake_quantize_backward(elements: int) -> None:
    x, grad = filled(elements).requires_grad_(), filled(elements)
    # The node alone: the output's memory is free again.
    node = ops.fake_quantize(x, LOW, HIGH, BITS, ste="clip").grad_fn
    actual, *_ = node(grad)
    for window in windows(elements):
        leaf = x.detach()[window].clone().requires_grad_()
        reference.fake_quantize(leaf, LOW, HIGH, BITS, ste="clip").backward(grad[window])
        assert torch.equal(actual[window], leaf.grad), window


def check_fake_quantize_dynamic(elements: int) -> None:
    x = filled(elements)
    x[-2:] = torch.tensor([-9.0, 8.0])
    y, low, high = ops.fake_quantize_dynamic(x, BITS)
    assert (low.item(), high.item()) == (-9.0, 8.0)
    for window in windows(elements):
        assert torch.equal(y[window], reference.fake_quantize(x[window], low, high, BITS)), window


def check_quantize_codes(elements: int) -> None:
    x = filled(elements)
    codes, _, _ = ops.quantize_codes(x, LOW, HIGH, BITS)
    for window in windows(elements):
        expected, _, _ = reference.quantize_codes(x[window], LOW, HIGH, BITS)
        assert torch.equal(codes[window], expected), window


def check_pack_codes(elements: int) -> None:
    """As one stream, and as rows that end within a byte."""
    for bits, rows in ((4, 1), (3, 5)):
        length = rows_of(elements, 8 * rows) * 8 + 8 - rows
        half = 2 ** (bits - 1)
        codes = torch.empty(rows, length, dtype=torch.int8)
        flat = codes.view(-1)
        pattern = torch.randint(-half, half, (PERIOD,)).to(torch.int8)
        for part in flat.split(PERIOD):
            part.copy_(pattern[: len(part)])
        packed = ops.pack_codes(codes, bits)
        for window in windows(length):
            start = window.start // 8 * 8
            of_codes = slice(start, start + WINDOW // 8 * 8)
            expected = reference.pack_codes(codes[:, of_codes], bits)
            first = start // 8 * bits
            assert torch.equal(packed[:, first : first + expected.shape[1]], expected), window
        assert torch.equal(ops.unpack_codes(packed, bits, length), codes)


def check_fake_quantize_learned(elements: int) -> None:
    x = filled(elements)
    y = ops.fake_quantize_learned(x, 4.0, 1.0, BITS)
    for window in windows(elements):
        expected = reference.fake_quantize_learned(x[window], 4.0, 1.0, BITS)
        assert torch.equal(y[window], expected), window


def kept_in(window: slice, seed: int, keep: float) -> torch.Tensor:
    """What is kept of a window of a long tensor."""
    first = window.start // 4
    quad = torch.arange(first, -(-window.stop // 4))
    zero = torch.zeros_like(quad)
    words = philox((quad & 2**32 - 1, quad >> 32, zero, zero), (torch.tensor(seed), zero[:1]))
    flat = torch.stack(words, -1).flatten()[window.start - 4 * first :]
    return (flat >> 8 < round(keep * 2**24))[: window.stop - window.start]


def check_fake_quantize_learned_dropped(elements: int) -> None:
    x = filled(elements)
    y = ops.fake_quantize_learned(x, 4.0, 1.0, BITS, keep=0.3, seed=5)
    for window in windows(elements):
        expected = reference.fake_quantize_learned(x[window], 4.0, 1.0, BITS)
        kept = kept_in(window, 5, 0.3)[: len(expected)]
        assert torch.equal(y[window], torch.where(kept, expected, x[window])), window


def check_random_mix(elements: int) -> None:
    a, b = filled(elements), filled(elements)
    y = ops.random_mix(a, b, 0.3, 5)
    for window in windows(elements):
        kept = kept_in(window, 5, 0.3)[: len(y[window])]
        assert torch.equal(y[window], torch.where(kept, a[window], b[window])), window


def check_relu_fake_quantize(elements: int) -> None:
    x = filled(elements)
    y = ops.relu_fake_quantize(x, 0.0, 1.75, BITS)
    for window in windows(elements):
        expected = reference.relu_fake_quantize(x[window], 0.0, 1.75, BITS)
        assert torch.equal(y[window], expected), window


def check_affine_relu_fake_quantize(elements: int) -> None:
    x = filled(1, 3, rows_of(elements, 3))
    affine = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.1, 0.2, -0.3])
    y = ops.affine_relu_fake_quantize(x, *affine, 0.0, 1.75, BITS)
    for window in windows(x.shape[2]):
        part = x[:, :, window]
        expected = reference.affine_relu_fake_quantize(part, *affine, 0.0, 1.75, BITS)
        assert torch.equal(y[:, :, window], expected), window


def check_channel_moments(elements: int) -> None:
    # One run of ones, the last element aside: blocks that were left out would show.
    x = torch.ones(1, 1, elements)
    x[..., -1] = 1e5
    mean, variance = ops.channel_moments(x)
    excess = (1e5 - 1) / elements
    expected = 1 + excess, (1e5 - 1) * excess - excess**2
    torch.testing.assert_close((mean.item(), variance.item()), expected, rtol=1e-6, atol=0)


def check_update_range(elements: int) -> None:
    x = filled(elements)
    x[-2:] = torch.tensor([-9.0, 8.0])
    state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    ops.update_range(x, *state)
    low, high = ops.read_range(*state)
    torch.testing.assert_close((low.item(), high.item()), (-9.0, 8.0), rtol=1e-6, atol=0)


def check_search_range(elements: int) -> None:
    # One value far out, the last: without it the best range would be another.
    x = filled(elements)
    x[-1] = 1e4
    low, high = ops.search_range(x, BITS, candidates=1)
    assert high.item() == x[-1].float().item() and low.item() <= -3


def check_bn_statistics_loss(elements: int) -> None:
    channels = 3
    x = filled(5, channels, rows_of(elements, 5 * channels))
    x[-1, -1] += 1
    totals = torch.zeros(2, channels, dtype=torch.float64)
    for part in x.split(1 << 24, dim=2):
        wide = part.double()
        totals += torch.stack([wide.sum((0, 2)), wide.square().sum((0, 2))])
    mean, second = totals / (x.numel() // channels)
    expected = mean.square().mean(), (second - mean.square()).square().mean()
    losses = ops.bn_statistics_loss(x, torch.zeros(channels), torch.zeros(channels))
    for actual, value in zip(losses, expected, strict=True):
        torch.testing.assert_close(actual.double(), value, rtol=1e-4, atol=1e-9)


def check_distillation_loss(elements: int) -> None:
    classes, period = 2053, 7
    count = rows_of(elements, classes)
    few = [torch.randn(period, classes).to(HALF) * 3 for _ in range(2)]
    student, teacher = (torch.empty(count, classes, dtype=HALF) for _ in range(2))
    place = torch.arange(count) % period
    for target, source in ((student, few[0]), (teacher, few[1])):
        torch.index_select(source, 0, place, out=target)
    labels = few[1].argmax(1)
    kl, ce, difficulty = ops.distillation_loss(student, teacher, labels[place])
    each = [reference.distillation_loss(*(t[i : i + 1] for t in (*few, labels))) for i in range(7)]
    weight = torch.bincount(place, minlength=period).double() / count
    for actual, part in ((kl, 0), (ce, 1)):
        expected = sum(w * e[part].double() for w, e in zip(weight, each, strict=True))
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-7)
    expected = torch.cat([e[2] for e in each])[place]
    torch.testing.assert_close(difficulty, expected, rtol=1e-5, atol=1e-6)


def check_low_pass(elements: int) -> None:
    x = filled(rows_of(elements, 32 * 32), 32, 32)
    y = ops.low_pass(x, 9.0)
    for plane in (0, len(x) // 2 - 1, len(x) // 2, len(x) - 1):
        expected = reference.low_pass(x[plane].float(), 9.0)
        torch.testing.assert_close(y[plane].float(), expected, rtol=1e-2, atol=1e-2)


def check_grad_cam(elements: int) -> None:
    count = rows_of(elements, 16 * 7 * 7)
    activations, gradients = filled(count, 16, 7, 7), filled(count, 16, 7, 7)
    maps = ops.grad_cam(activations, gradients, (7, 7))
    for images in (slice(0, 9), slice(count // 2, count // 2 + 9), slice(count - 9, count)):
        expected = reference.grad_cam(activations[images], gradients[images], (7, 7))
        torch.testing.assert_close(maps[images], expected, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        op: The registered op that must have a kernel.
        gib: Memory of the check at 2^31 elements.
        check: Runs at least so many elements through the op.
    """

    op: str
    gib: int
    check: Callable[[int], None]


# A further op is one line here and its check above.
ROWS = {
    row.check.__name__.removeprefix("check_"): row
    for row in (
        Row("fake_quantize", 9, check_fake_quantize),
        Row("fake_quantize", 9, check_fake_quantize_per_channel),
        Row("fake_quantize", 13, check_fake_quantize_backward),
        Row("fake_quantize_dynamic", 9, check_fake_quantize_dynamic),
        Row("quantize_codes", 7, check_quantize_codes),
        Row("pack_codes", 8, check_pack_codes),
        Row("fake_quantize_learned", 9, check_fake_quantize_learned),
        Row("fake_quantize_learned", 9, check_fake_quantize_learned_dropped),
        Row("random_mix", 13, check_random_mix),
        Row("relu_fake_quantize", 9, check_relu_fake_quantize),
        Row("affine_relu_fake_quantize", 9, check_affine_relu_fake_quantize),
        Row("channel_moments", 9, check_channel_moments),
        Row("update_range", 5, check_update_range),
        Row("search_range", 5, check_search_range),
        Row("bn_statistics_loss", 6, check_bn_statistics_loss),
        Row("distillation_loss", 9, check_distillation_loss),
        Row("low_pass", 9, check_low_pass),
        Row("grad_cam", 10, check_grad_cam),
    )
}


def free_gib() -> float:
    """Memory that new work can have without swapping, as Linux reports it; else 0."""
    information = Path("/proc/meminfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((int(x.split()[1]) / 2**20 for x in lines if x.startswith("MemAvailable")), 0.0)


@pytest.mark.parametrize("name", ROWS)
def test_the_checks_on_small_tensors(name) -> None:
    if not hasattr(ops, ROWS[name].op):
        pytest.skip(f"there is no op {ROWS[name].op}")
    ROWS[name].check(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_more_than_two_to_the_31_elements(name) -> None:
    row = ROWS[name]
    if os.environ.get("SYNQ_FAST_HUGE") != "1":
        pytest.skip(f"needs {row.gib} GiB and minutes; SYNQ_FAST_HUGE=1 runs it")
    if free_gib() < row.gib + 1:
        pytest.skip(f"needs {row.gib} GiB of free memory, there are {free_gib():.1f}")
    if ops.available_backends()["cpu"] is not None:
        pytest.skip(f"{row.op} has no CPU kernel")
    row.check(HUGE)
    gc.collect()
