"""Codes as streams of bits and back: ours beside the plain PyTorch form and a copy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.testing import CASES, Sample

from . import columns, harness

# A large layer of a ResNet, and rows that end within a byte.
SHAPES = harness.sizes(
    cpu=[(512, 4608), (1024, 4603)],
    cuda=[(512, 4608), (4096, 4608), (32_768, 4608), (32_768, 4603)],
)
CASES_OF_OPS = [(bits, shape) for bits in (8, 4, 3, 2) for shape in SHAPES]


@pytest.mark.parametrize("name", ["pack_codes", "unpack_codes"])
@pytest.mark.parametrize(("bits", "shape"), CASES_OF_OPS, ids=str)
def bench_pack_codes(
    name: str, bits: int, shape: tuple[int, int], compare: Callable[..., harness.Comparison]
) -> None:
    """Ours against the reference, eager and compiled, and a copy of as many bytes."""
    half = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-half, half, shape, generator=generator, dtype=torch.int8)
    given = codes.to(harness.DEVICE)
    arguments: tuple[int, ...] = (bits,)
    options = {"bits": bits}
    if name == "unpack_codes":
        given, arguments = reference.pack_codes(given, bits), (bits, shape[1])
        options["length"] = shape[1]
    function, plain = getattr(ops, name), getattr(reference, name)
    expected = plain(given, *arguments)
    ours, omitted = columns.our_columns(function, given, *arguments)
    for title, call in ours.items():
        assert torch.equal(call(), expected), f"{title} differs"

    rows: dict[str, Callable[[], object]] = dict(ours)
    rows["reference, eager"] = columns.call(plain, given, *arguments)
    compiled, reason = columns.compiled_column(plain, given, *arguments)
    if compiled is None:
        omitted["reference, torch.compile"] = reason
    else:
        rows["reference, torch.compile"] = compiled
    moved = CASES[name].bytes_moved(Sample("measured", (given,), options))
    rows["copy of as many bytes"] = columns.copy_column(moved)
    compare(
        f"{name} {'x'.join(map(str, shape))}, {bits} bits",
        rows,
        ours=next(iter(ours), None),
        copy="copy of as many bytes",
        bytes_moved=moved,
        omitted=omitted,
        rounds=9,
    )
