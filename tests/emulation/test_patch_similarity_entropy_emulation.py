"""The CUDA C++ kernels of the patch similarity entropy, run on the CPU, against float64.

The two matrix products between the kernels are torch's, as on a GPU.
"""

import ctypes
import itertools
import math

import pytest
import torch

from tests.emulation.build import build, shifted
from tests.kernel_cases import DTYPES
from tests.similarity_cases import CASES, assert_right, make_tokens

# In the order of PatchSimilarityParams.
BUFFERS = ("tokens", "unit", "inverse", "similarity", "extrema", "range", "sums", "entropy")
BUFFERS += ("slope", "gradient")

# Several blocks of similarities, a part of one, images of their own; packs of 4 and 8 and none.
SPLIT = {
    "two blocks and a part of one": ((2, 70, 8), {"bandwidth": 0.05}),
    "packs in every type": ((3, 9, 272), {"bandwidth": 0.05, "points": 5}),
}


class Params(ctypes.Structure):
    """PatchSimilarityParams of csrc/patch_similarity_entropy.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in BUFFERS),
        *((name, ctypes.c_int64) for name in ("batch", "count", "channels")),
        *((name, ctypes.c_int64) for name in ("points", "similarities")),
        *((name, ctypes.c_double) for name in ("bandwidth", "eps")),
        ("dtype", ctypes.c_int32),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("patch_similarity_entropy", tmp_path_factory)
    library.splits.restype = ctypes.c_int64
    return library


def run(library, tokens, points=10, bandwidth=0.01, eps=1e-4, shift=0, with_gradient=True):
    """Entropies and their sum's gradient, as the op computes them."""
    tokens = shifted(tokens, shift)
    batch, count, channels = tokens.shape
    params = Params(
        batch=batch, count=count, channels=channels, points=points, similarities=count * count,
        bandwidth=bandwidth, eps=eps, dtype=DTYPES.index(tokens.dtype),
    )  # fmt: skip
    splits = library.splits(ctypes.byref(params))
    shapes = {
        "unit": (batch, count, channels),
        "inverse": (batch, count),
        "extrema": (2, batch * splits),
        "range": (2 + points,),
        "sums": (batch, splits, points),
        "entropy": (batch,),
        "slope": (batch, points),
    }
    # A guard behind each buffer shows what is written beyond it.
    guarded = {
        name: torch.full(
            (math.prod(shape) + 4,),
            math.nan,
            dtype=torch.float64 if name == "sums" else torch.float32,
        )
        for name, shape in shapes.items()
    }
    buffers = {name: value[:-4].view(shapes[name]) for name, value in guarded.items()}

    def call(name):
        for buffer, value in {"tokens": tokens, **buffers}.items():
            if buffer != "slope" or with_gradient:
                setattr(params, buffer, value.data_ptr())
        assert getattr(library, name)(ctypes.byref(params)) == 0
        for buffer, value in guarded.items():
            assert value[-4:].isnan().all(), f"{name} wrote beyond {buffer}"

    call("normalize")
    buffers["similarity"] = buffers["unit"] @ buffers["unit"].mT
    call("entropy")
    if not with_gradient:
        assert buffers["slope"].isnan().all()
        return buffers["entropy"], None
    call("slopes")
    buffers["gradient"] = buffers["similarity"] @ buffers["unit"]
    call("project")
    return buffers["entropy"], buffers["gradient"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES] + list(itertools.product(SPLIT, DTYPES)),
    ids=str,
)
def test_against_float64(library, name, dtype) -> None:
    shape, options = (CASES | SPLIT)[name]
    tokens = make_tokens(shape).to(dtype)
    entropy, gradient = run(library, tokens, **options)
    weight = torch.arange(1, len(entropy) + 1)[:, None, None]
    assert_right((entropy, (gradient * weight).to(dtype)), tokens, **options)
    alone, nothing = run(library, tokens, **options, with_gradient=False)
    assert torch.equal(alone, entropy)
    assert nothing is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 3])
def test_unaligned_memory(library, dtype, shift) -> None:
    tokens = make_tokens((2, 9, 16)).to(dtype)
    expected = run(library, tokens)
    for mine, aligned in zip(run(library, tokens, shift=shift), expected, strict=True):
        torch.testing.assert_close(mine, aligned, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 69, 7)], ids=str)
def test_not_finite(library, value, place) -> None:
    tokens = make_tokens((2, 70, 8))
    tokens[place] = value
    for result in run(library, tokens):
        assert result.isnan().all()


def test_zero_and_tiny_tokens(library) -> None:
    tokens = make_tokens((1, 7, 4))
    tokens[0, 3] = 0
    tokens[0, 5] = 1e-10
    entropy, gradient = run(library, tokens, bandwidth=0.2)
    assert entropy.isfinite().all()
    assert gradient[0, 3].norm() > 1e5
    along = (gradient * tokens).sum(-1)[0]
    assert along[[0, 1, 2, 4, 6]].abs().max() < 1e-5
    assert along[5] != 0
