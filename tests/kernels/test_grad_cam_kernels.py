"""The Triton kernels of the class activation maps in the interpreter, against float64."""

import pytest
import torch

from synq_fast import ops
from tests.cam_cases import (
    CLAMPED,
    DTYPES,
    KINDS,
    TIES,
    Case,
    assert_results_close,
    call,
    cases,
    results,
    tie_case,
    unclamped,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
ALL_KINDS = (*KINDS, "cam_alignment_loss")


@pytest.fixture(autouse=True)
def triton_backend():
    with ops.backend("triton"):
        yield


def check(kind: str, case: Case) -> None:
    assert_results_close(results(lambda leaf: call(ops, kind, case, leaf), case), kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_cases(kind: str) -> None:
    contiguous = list(cases(kind, torch.float32, ("contiguous",)))
    for case in (contiguous[0], contiguous[2], list(cases(kind, torch.float32, ("tokens",)))[5]):
        check(kind, case)


@pytest.mark.parametrize("kind", CLAMPED)
def test_without_a_clamp(kind: str) -> None:
    check(kind, unclamped(list(cases(kind, torch.float32, ("contiguous",)))[2]))


@pytest.mark.parametrize("scale", [1e-30, 1e8])
def test_plus_plus_counts_gradients_of_any_scale(scale: float) -> None:
    a, g = torch.rand(2, 2, 8, 3, 4)
    g = (g - 0.3) * scale
    case = Case("", a, g, torch.tensor([-200.0, 200.0]), torch.rand(2, 1, 5, 4), (5, 4), None)
    check("grad_cam_plus_plus", case)


def test_plus_plus_counts_a_denominator_of_zero_as_one() -> None:
    a = torch.tensor([[[[-4.0, 2.0, 0.0]], [[9.0, 1.0, 6.0]]]])
    g = torch.tensor([[[[1.0, 0.5, 0.0]], [[0.0, 0.0, 1.0]]]])
    for eps in (0.0, 1e-7):
        cam = ops.grad_cam_plus_plus(a, g, torch.zeros(1), (1, 3), eps=eps)
        expected = (1.5 * a[:, :1].double() + a[:, 1:].double() / 18).relu()
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        assert_close(cam, expected, "cam_map")


@pytest.mark.parametrize("kind", ["layer_cam"])
def test_layouts(kind: str) -> None:
    for layout in ("mixed", "transposed", "expanded"):
        check(kind, list(cases(kind, torch.float32, (layout,)))[1])


@pytest.mark.parametrize("kind", ["grad_cam", "hires_cam", "cam_alignment_loss"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(kind: str, dtype: torch.dtype) -> None:
    check(kind, list(cases(kind, dtype, ("channels_last",)))[1])


@pytest.mark.parametrize("kind", ["grad_cam", "cam_alignment_loss"])
@pytest.mark.parametrize("name", list(TIES)[::2])
def test_ties(kind: str, name: str) -> None:
    check(kind, tie_case(name))


@pytest.mark.parametrize("kind", ["grad_cam_plus_plus", "cam_alignment_loss"])
@pytest.mark.parametrize(
    ("shape", "size", "why"),
    [
        ((1, 40, 2, 23), (3, 140), "tiles of channels, of coarse and of pixel columns"),
        ((1, 2, 2, 40), (4, 9), "fewer pixels than coarse columns"),
    ],
)
def test_larger(kind: str, shape: tuple[int, ...], size: tuple[int, int], why: str) -> None:
    a, g = torch.rand(shape), torch.rand(shape) - (0 if kind == "grad_cam_plus_plus" else 0.2)
    check(kind, Case(why, a, g, torch.zeros(1), torch.rand(1, 1, *size), size, None))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_flat_not_finite_and_empty(kind: str) -> None:
    flat = torch.full((2, 3, 3, 3), 0.3)
    case = Case(
        "", flat, torch.ones_like(flat), torch.ones(2), torch.rand(2, 1, 5, 4), (5, 4), None
    )
    check(kind, case)
    broken = torch.rand(2, 3, 3, 3)
    broken[1, 2, 2, 2] = float("nan")
    case = case._replace(activations=broken)
    value, gradient = results(lambda leaf: call(ops, kind, case, leaf), case)
    assert gradient[0].isfinite().all()
    assert gradient[1].isnan().any()
    if kind == "cam_alignment_loss":
        assert value.isnan()
    else:
        assert value[0].isfinite().all()
        assert value[1].isnan().all()
    none = case.activations[:0]
    case = Case("", none, none, torch.ones(0), torch.rand(0, 1, 5, 4), (5, 4), None)
    value, gradient = results(lambda leaf: call(ops, kind, case, leaf), case)
    assert value.shape == (() if kind == "cam_alignment_loss" else (0, 1, 5, 4))
    assert gradient.shape == none.shape


def test_opcheck() -> None:
    a, g = (torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last) for _ in range(2))
    library = torch.ops.synq_fast
    leaf = a.clone().requires_grad_()
    for kind in range(4):
        score = torch.rand(2) if kind == 1 else None
        arguments = (leaf, g, score, kind, 5, 4, 1e-10, 1e-10)
        # The kinds share one registration; one of them goes through the compiler too.
        fewer = {"test_utils": ("test_schema", "test_faketensor")} if kind != 1 else {}
        torch.library.opcheck(library.grad_cam.triton, arguments, **fewer)
    for activations, with_gradient in ((a, False), (leaf, True)):
        arguments = (activations, g, torch.rand(2, 1, 5, 4), 1e-10, 1e-10, with_gradient)
        torch.library.opcheck(library.cam_alignment_loss.triton, arguments)


def test_activations_are_differentiable_once() -> None:
    leaf = torch.rand(1, 2, 3, 3, requires_grad=True)
    cam = ops.grad_cam(leaf, torch.rand(1, 2, 3, 3), (4, 4))
    incoming = torch.rand(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(cam, leaf, incoming, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()
