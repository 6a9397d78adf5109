"""The CUDA kernels of the class activation maps, run thread by thread on the CPU.

Checked against the reference in float64: indexing, layouts, packs, odd sizes, ties, reductions.
What a GPU makes of them is the business of tests/compile and of the tests marked `cuda`.
"""

import ctypes

import pytest
import torch

from synq_fast.ops._cam import KINDS
from tests.cam_cases import (
    CLAMPED,
    DTYPES,
    TIES,
    Case,
    assert_results_close,
    cases,
    gradients_for,
    tie_case,
    unclamped,
)
from tests.emulation.build import build, shifted

CAM_SIZES = ("height", "width", "map_height", "map_width")


def fields(pointers: tuple[str, ...], sizes: tuple[str, ...], rest: list) -> list:
    return [*((p, ctypes.c_void_p) for p in pointers), *((s, ctypes.c_int64) for s in sizes), *rest]


class CoarseParams(ctypes.Structure):
    """CoarseParams of csrc/grad_cam.h."""

    _fields_ = fields(
        ("activations", "gradients", "score", "weights", "coarse", "stretches"),
        ("activation_stride", "gradient_stride", "images", "channels", *CAM_SIZES),
        [
            ("channels_last", ctypes.c_int32),
            ("kind", ctypes.c_int32),
            ("clamp", ctypes.c_float),
            ("eps", ctypes.c_float),
            ("dtype", ctypes.c_int32),
        ],
    )


class MapParams(ctypes.Structure):
    """MapParams of csrc/grad_cam.h."""

    _fields_ = fields(
        ("coarse", "stretches", "map", "other", "workspace", "slope", "loss"),
        ("images", *CAM_SIZES),
        [("eps", ctypes.c_float), ("dtype", ctypes.c_int32)],
    )


class SpreadParams(ctypes.Structure):
    """SpreadParams of csrc/grad_cam.h."""

    _fields_ = fields(
        ("weights", "slope", "factor", "result"),
        ("images", "channels", "positions"),
        [
            ("channels_last", ctypes.c_int32),
            ("kind", ctypes.c_int32),
            ("clamp", ctypes.c_float),
            ("dtype", ctypes.c_int32),
        ],
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("grad_cam", tmp_path_factory)
    library.workspace.restype = ctypes.c_int64
    library.set_multiprocessors(1)
    return library


def memory(x: torch.Tensor, channels_last: bool, shift: int) -> torch.Tensor:
    """Returns images in the order of memory, `shift` elements after a 16-byte boundary."""
    return shifted(x.permute(0, 2, 3, 1).contiguous() if channels_last else x.contiguous(), shift)


class Kernels:
    """Calls the launchers as the ops do."""

    def __init__(self, library: ctypes.CDLL, shift: int = 0):
        self.library = library
        self.shift = shift

    def run(self, name: str, params: ctypes.Structure) -> None:
        assert getattr(self.library, name)(ctypes.byref(params)) == 0, name

    def results(self, kind: str, case: Case) -> list[torch.Tensor]:
        """Returns value and gradient for the incoming gradient of tests.cam_cases.results."""
        number = KINDS.get(kind, 0)
        clamp = float("-inf") if case.clamp is None else case.clamp
        eps = 1e-10
        if kind == "grad_cam_plus_plus":
            clamp, eps = 1e-7, 0.0
        last = case.activations.stride(1) == 1 and case.activations.shape[1] > 1
        images, channels, height, width = case.activations.shape
        a, g = (memory(x, last, self.shift) for x in (case.activations, case.gradients))
        weights = torch.full((images, channels), float("nan"))
        coarse = torch.full((images, height, width), float("nan"))
        stretches = torch.zeros(images * self.library.stretch_size(), dtype=torch.uint8)
        sizes = dict(zip(CAM_SIZES, (height, width, *case.size), strict=True))
        dtype = DTYPES.index(a.dtype)
        self.run("coarse", CoarseParams(
            activations=a.data_ptr(), gradients=g.data_ptr(), score=case.score.data_ptr(),
            weights=weights.data_ptr(), coarse=coarse.data_ptr(), stretches=stretches.data_ptr(),
            activation_stride=a[0].numel(), gradient_stride=a[0].numel(),
            images=images, channels=channels, channels_last=last, kind=number, clamp=clamp,
            eps=eps, dtype=dtype, **sizes,
        ))  # fmt: skip
        params = MapParams(
            coarse=coarse.data_ptr(), stretches=stretches.data_ptr(), images=images, eps=eps,
            dtype=0, **sizes,
        )  # fmt: skip
        workspace = torch.full((self.library.workspace(ctypes.byref(params)) + 1,), float("nan"))
        slope = torch.full_like(coarse, float("nan"))
        params.workspace, params.slope = workspace.data_ptr(), slope.data_ptr()
        if kind == "cam_alignment_loss":
            value, factor = torch.full((), float("nan")), torch.tensor(-1.0).double().sin().float()
            target = case.target.to(a.dtype).contiguous()
            params.other, params.dtype, params.loss = target.data_ptr(), dtype, value.data_ptr()
            self.run("loss", params)
        else:
            value, factor = torch.full((images, 1, *case.size), float("nan")), None
            incoming = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).sin().float()
            params.map = value.data_ptr()
            self.run("map", params)
            stretches.zero_()
            self.run("stretch", params)
            params.other = incoming.data_ptr()
            self.run("map_backward", params)
        assert workspace[-1].isnan(), f"{kind} wrote beyond its workspace"
        result = shifted(torch.zeros_like(a), self.shift)
        by_element = kind in ("layer_cam", "hires_cam")
        self.run("spread", SpreadParams(
            weights=(g if by_element else weights).data_ptr(), slope=slope.data_ptr(),
            factor=None if factor is None else factor.data_ptr(), result=result.data_ptr(),
            images=images, channels=channels, positions=height * width, channels_last=last,
            kind=number, clamp=clamp, dtype=dtype,
        ))  # fmt: skip
        return [value, result.permute(0, 3, 1, 2) if last else result]


ALL_KINDS = (*KINDS, "cam_alignment_loss")


def check(kernels: Kernels, kind: str, case: Case) -> None:
    if kind == "cam_alignment_loss":
        case = case._replace(target=case.target.to(case.activations.dtype))
    assert_results_close(kernels.results(kind, case), kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_cases(library, kind: str) -> None:
    for case in cases(kind, torch.float32, ("contiguous", "channels_last")):
        check(Kernels(library), kind, case)


@pytest.mark.parametrize("kind", CLAMPED)
def test_without_a_clamp(library, kind: str) -> None:
    for case in cases(kind, torch.float32, ("contiguous", "channels_last")):
        check(Kernels(library), kind, unclamped(case))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_plus_plus_counts_gradients_of_any_scale(library, scale: float, layout) -> None:
    a, g = (torch.rand(2, 8, 5, 6).to(memory_format=layout) for _ in range(2))
    g = (g - 0.3) * scale
    case = Case("", a, g, torch.tensor([-200.0, 200.0]), torch.rand(2, 1, 9, 8), (9, 8), None)
    check(Kernels(library), "grad_cam_plus_plus", case)


@pytest.mark.parametrize("kind", ["grad_cam", "layer_cam", "cam_alignment_loss"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(library, kind: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        for case in list(cases(kind, dtype, (layout,)))[2:5]:
            check(Kernels(library), kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("shape", "size", "why"),
    [
        ((1, 260, 8, 8), (20, 24), "1024 threads, several packs of channels a warp"),
        ((2, 3, 17, 16), (36, 17), "more positions than a warp takes at once, rows beyond a tile"),
        ((1, 4, 2, 3), (3, 521), "pixel columns beyond a tile"),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_larger(library, kind, shape, size, why, layout) -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.rand(shape, generator=generator).to(memory_format=layout)
    g = gradients_for(kind, torch.randn(shape, generator=generator))
    case = Case(why, a, g, torch.zeros(shape[0]), torch.rand(shape[0], 1, *size), size, None)
    check(Kernels(library), kind, case)


@pytest.mark.parametrize("kind", ["grad_cam", "layer_cam", "hires_cam", "cam_alignment_loss"])
@pytest.mark.parametrize("name", TIES)
def test_ties(library, kind: str, name: str) -> None:
    check(Kernels(library), kind, tie_case(name))


@pytest.mark.parametrize("kind", ["grad_cam_plus_plus", "layer_cam", "cam_alignment_loss"])
def test_unaligned_memory(library, kind: str) -> None:
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            a, g = torch.rand(2, 2, 8, 4, 4).to(dtype)
            g = gradients_for(kind, g)
            case = Case("", a.to(memory_format=layout), g, torch.zeros(2), torch.rand(2, 1, 6, 8),
                        (6, 8), None)  # fmt: skip
            check(Kernels(library, shift=1), kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_flat_and_not_finite(library, kind: str) -> None:
    flat = torch.full((2, 3, 5, 5), 0.3)
    target = torch.rand(2, 1, 9, 8)
    case = Case("", flat, torch.ones_like(flat), torch.ones(2), target, (9, 8), None)
    check(Kernels(library), kind, case)
    broken = torch.rand(2, 3, 5, 5)
    broken[1, 2, 4, 4] = float("nan")
    value, gradient = Kernels(library).results(kind, case._replace(activations=broken))
    assert gradient[0].isfinite().all()
    assert gradient[1].isnan().any()
    if kind == "cam_alignment_loss":
        assert value.isnan()
    else:
        assert value[0].isfinite().all()
        assert value[1].isnan().all()
