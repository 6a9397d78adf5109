"""Low-pass filters in the frequency domain."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise

# The design's bound for every kind and size on N(0, 1) input.
FILTERED = Tolerance(atol=5e-6)
KINDS = ("gaussian", "butterworth", "ideal")
SHAPES = {
    (1, 1): "the zero frequency alone",
    (3, 2, 1): "lines of several images in a program; no odd part",
    (1, 6): "one row",
    (2, 5, 7): "odd sides, no Nyquist frequency",
    (2, 8, 8): "even, one unpaired frequency an axis",
    (1, 12, 20): "even sides whose halves are even",
    (5, 6, 10): "even sides whose halves are odd",
    (2, 3, 9, 8): "images",
    (2, 3, 32, 32): "CIFAR",
    (1, 70, 65): "more than one block of rows, depth and lines; all with a rest",
    (2, 0, 4): "no row",
    (0, 3, 4, 4): "no image",
}
LONG_SIDES = {
    (3, 33, 16): "more than one block of rows",
    (1, 3, 248): "the longest side with 32 lines in a tile, three jobs in a warp at most",
    (1, 256, 2): "16 lines in a tile",
    (1, 4, 301): "odd, 16 lines in a tile",
    (1, 2, 448): "the longest side of the CUDA kernel",
}
LARGE = {
    (31, 33): "odd",
    (2, 6, 44): "halves of 44: 22, which is even, and 11",
    (2, 64, 48): "not square",
    (97, 101): "primes",
    (2, 224, 224): "ImageNet",
    (3, 299, 299): "odd, with large prime factors",
    (1, 512, 384): "one image, shared by the threads",
    (700, 8, 6): "many small ones",
    (2, 5, 1600): "a side that is left to transforms",
    (2, 40, 5, 6): "many channels",
}


def call(namespace: Any, x: torch.Tensor, *, cutoff: float = 2.0, **options: Any) -> torch.Tensor:
    """Calls the op."""
    y: torch.Tensor = namespace.low_pass(x, cutoff, **options)
    return y


def inputs() -> Iterator[Sample]:
    """Yields images of every kind of size, and filters of every kind."""
    yield Sample("typical", (noise(2, 3, 6, 7, seed=1),))
    for shapes, flags in (
        (SHAPES, {"every_layout": True}),
        (LONG_SIDES, {}),
        (LARGE, {"large": True}),
    ):
        for shape, reason in shapes.items():
            flags = {**flags, "every_layout": "every_layout" in flags or len(shape) == 4}
            for index, kind in enumerate(KINDS):
                for cutoff in (0.5, max(0.3 * max(shape), 3.0), 20.0):
                    options = {"cutoff": cutoff, "kind": kind, "order": (2, 1, 5)[index]}
                    small = cutoff == 3.0 or kind == "gaussian"
                    kept = {**flags, "every_layout": flags["every_layout"] and small}
                    yield Sample(f"{reason}, {kind}", (noise(*shape),), options, **kept)
    for value in (float("nan"), float("inf"), -float("inf")):
        for size in ((8, 9), (32, 40)):
            x = noise(2, 3, *size)
            x[1, 2, 3, 4] = value
            for kind in KINDS:
                options = {"kind": kind}
                yield Sample(f"{value} stays in its plane", (x,), options, special=True)


def oracle(
    x: torch.Tensor, *, cutoff: float = 2.0, kind: str = "gaussian", order: int = 2
) -> torch.Tensor:
    """The filter as textbooks draw it: complex spectrum, zero frequency moved to floor(n/2)."""
    if x.numel() == 0:
        return x * 1
    height, width = x.shape[-2:]
    rows, columns = (
        torch.arange(n, dtype=torch.float64, device=x.device) - n // 2 for n in (height, width)
    )
    squared = rows[:, None] ** 2 + columns**2
    if kind == "gaussian":
        gain = torch.exp(-squared / (2 * cutoff**2))
    elif kind == "butterworth":
        gain = 1 / (1 + (squared.sqrt() / cutoff) ** (2 * order))
    else:
        gain = (squared <= cutoff**2).double()
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.double()), dim=(-2, -1))
    filtered: torch.Tensor = torch.fft.ifft2(
        torch.fft.ifftshift(spectrum * gain, dim=(-2, -1))
    ).real
    return filtered


def nearest(x: torch.Tensor) -> Any:
    """ATen's transform in one direction."""
    return lambda: torch.fft.rfft2(x)


CASE = OpCase(
    name="low_pass",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(FILTERED,),
    gradients=(FILTERED,),
    bytes_moved=lambda sample: 2 * nbytes(sample.tensors[0]),
    nearest=Nearest("fft_rfft2", nearest),
    same_type=True,
    second_derivative=True,
    variants=({"kind": "butterworth", "order": 3}, {"kind": "ideal"}),
    saves=0,
)
