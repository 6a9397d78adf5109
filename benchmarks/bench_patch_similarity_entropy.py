"""Patch similarity entropy, alone and with its gradient; and peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from synq_fast import ops, reference

from . import columns, harness
from .peak_memory import peak_bytes

# DeiT-tiny and PSAQ-ViT's 32 images; DeiT-base; Swin windows; DeiT-small with its class token.
TOKENS = [(32, 196, 192), (8, 196, 768), (4, 49, 96), (2, 197, 384)]
SHAPES = harness.sizes(cpu=TOKENS, cuda=[*TOKENS, (256, 196, 384)])
PUBLISHED_LIMIT = 1 << 28

Function = Callable[[Tensor], Tensor]


def _published(tokens: Tensor) -> Tensor:
    """The published code's similarities: a (B, N, N, C) tensor; its density is the reference's."""
    similarity = torch.cosine_similarity(tokens.unsqueeze(1), tokens.unsqueeze(2), dim=3)
    low, high = similarity.min().item(), similarity.max().item()
    grid = torch.linspace(low, high, 10, device=tokens.device)
    deviation = (similarity.flatten(1).unsqueeze(1) - grid.unsqueeze(1)) / 0.01
    kernel = torch.exp(-0.5 * deviation.square()) / (0.01 * math.sqrt(2 * math.pi))
    density = kernel.mean(-1) + 1e-4
    return torch.trapezoid(-density * density.log(), grid)


def _tokens(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Tokens with a direction in common, as the patches of one image have."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(shape, generator=generator)
    common = torch.randn(shape[0], 1, shape[2], generator=generator)
    return (own + 0.5 * common).to(harness.DEVICE, dtype)


def _step(function: Function, tokens: Tensor, backward: bool) -> Callable[[], Tensor]:
    leaf = tokens.clone().requires_grad_(backward)

    def forward() -> Tensor:
        return function(leaf)

    def both() -> Tensor:
        (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
        return gradient

    return both if backward else forward


def _products(tokens: Tensor, backward: bool) -> Callable[[], Tensor]:
    """Only the matrix products that the definition needs."""
    similarity = tokens @ tokens.mT

    def call() -> Tensor:
        result = torch.bmm(tokens, tokens.mT)
        return torch.bmm(similarity, tokens) if backward else result

    return call


@pytest.mark.parametrize("dtype", harness.dtypes(), ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with_backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_patch_similarity_entropy(
    shape: tuple[int, int, int],
    backward: bool,
    dtype: torch.dtype,
    compare: Callable[..., harness.Comparison],
) -> None:
    """Ours against eager, compiled, the published expression, its matrix products and a copy."""
    tokens = _tokens(shape, dtype)
    expected = _step(reference.patch_similarity_entropy, tokens.double(), backward)()

    rows: dict[str, Callable[[], Tensor]] = {}

    def add(name: str, function: Function) -> None:
        call = _step(function, tokens, backward)
        distance = (call().double() - expected).norm() / expected.norm()
        # In half precision the expressions beside ours are off by their own roundings.
        limit = 2e-4 if dtype == torch.float32 else 1e-2 if name.startswith("ours") else math.inf
        assert distance < limit, f"{name} is {distance:.1e} from the reference in float64"
        rows[name] = call

    by_backend, omitted = columns.our_columns(ops.patch_similarity_entropy, tokens)
    for name in by_backend:

        def ours(
            leaf: Tensor, chosen: str = name.removeprefix("ours (").removesuffix(")")
        ) -> Tensor:
            with ops.backend(chosen):
                return ops.patch_similarity_entropy(leaf)

        add(name, ours)
    add("reference, eager", reference.patch_similarity_entropy)
    torch.compiler.reset()
    compiled = torch.compile(reference.patch_similarity_entropy, dynamic=False)
    add("reference, torch.compile", compiled)
    if 4 * math.prod(shape) * shape[1] <= PUBLISHED_LIMIT:
        add("published, cosine_similarity", _published)
    else:
        omitted["published, cosine_similarity"] = "needs more than 256 MiB for the products alone"
    rows["aten bmm, the products alone"] = _products(tokens, backward)
    rows["clone"] = tokens.clone
    name = "with backward" if backward else "forward"
    compare(
        f"{name} {'x'.join(map(str, shape))}{harness.kind('contiguous', dtype)}",
        rows,
        ours=next(iter(by_backend), None),
        copy="clone",
        bytes_moved=2 * tokens.nbytes,
        omitted=omitted,
    )


_CALL = """
from synq_fast import {module}
tokens = torch.randn({shape}, generator=torch.Generator().manual_seed(0))

def run(tokens):
    leaf = tokens.clone().requires_grad_()
    return torch.autograd.grad({module}.patch_similarity_entropy(leaf).sum(), leaf)

call = lambda: run(tokens)
warm_up = lambda: run(tokens[:1, :9])
"""


@pytest.mark.skipif(harness.DEVICE.type != "cpu", reason="counts resident memory")
@pytest.mark.parametrize(
    ("shape", "least"), [((32, 196, 192), 10), ((8, 196, 768), 3)], ids=["many", "wide"]
)
def bench_peak_memory(shape: tuple[int, int, int], least: int) -> None:
    """Peak resident memory of a call with its gradient, beyond the tokens, in fresh processes.

    Wide tokens weigh as much as their similarities do, in any implementation.
    """
    ours, eager = (
        peak_bytes(_CALL.format(module=module, shape=shape)) for module in ("ops", "reference")
    )
    print(f"\npeak memory, {shape}: ours {ours / 2**20:.1f} MiB, eager {eager / 2**20:.1f} MiB")
    assert least * ours < eager
