"""The suite sees what it is there for: backends with one fault each."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.testing import CASES, check
from synq_fast.testing.case import OpCase
from synq_fast.testing.cases import search_range
from synq_fast.testing.conformance import checks
from synq_fast.testing.layouts import DENSE, LAYOUTS, converted, lay_out

PRIVATE = ("backend", "available_backends", "current_backend", "BackendUnavailableError")


def faulty(name: str, change) -> SimpleNamespace:
    """The reference, whose first result is changed."""
    right = getattr(reference, name)

    def wrong(x, *arguments, **options):
        given = right(x, *arguments, **options)
        if isinstance(given, tuple):
            return change(given[0], x), *given[1:]
        return change(given, x)

    return SimpleNamespace(**{name: wrong})


def off_by_a_bit(y, x):
    moved = torch.nextafter(y.detach().float(), torch.tensor(float("inf"))).to(y.dtype)
    return y + (moved - y.detach())


def without_nan(y, x):
    return torch.where(y.isnan(), torch.zeros_like(y), y)


FAULTS = {
    "a bit too much": ("fake_quantize", off_by_a_bit, "differ"),
    "a value": ("low_pass", lambda y, x: y * (1 + 1e-4), "allowed"),
    "a loss": ("bn_statistics_loss", lambda y, x: y * (1 + 1e-4), "allowed"),
    "the gradient alone": ("low_pass", lambda y, x: 2 * y - y.detach(), "gradient 0"),
    "an exact gradient": ("fake_quantize", lambda y, x: 2 * y - y.detach(), "gradient 0"),
    "no gradient": ("low_pass", lambda y, x: y.detach(), "instead of ['all results']"),
    "a gradient too much": ("quantize_codes", lambda y, x: y + 0 * x.sum(), "result 0"),
    "the type": ("fake_quantize", lambda y, x: y.double(), "torch.float64"),
    "the shape": ("low_pass", lambda y, x: y[None], "shape"),
    "NaN is dropped": ("fake_quantize", without_nan, "differ"),
    "NaN of a sum is dropped": ("bn_statistics_loss", without_nan, "finite that must not be"),
    "the input": (
        "low_pass",
        lambda y, x: (x.is_contiguous() and x.detach().add_(0), y)[1],
        "written to",
    ),
    "the layout": ("fake_quantize", lambda y, x: y.contiguous(), "strides"),
    "the layout of a gradient": (
        "low_pass",
        lambda y, x: y + Scrambled.apply(x) * 0,
        "strides",
    ),
}


class Scrambled(torch.autograd.Function):
    """The identity, with a gradient that lies otherwise."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(fault: str) -> None:
    name, change, message = FAULTS[fault]
    small = {"wanted": lambda sample: sample.tensors[0].numel() < 300, "dtypes": [torch.float32]}
    found = check(CASES[name], faulty(name, change), **small)
    assert any(message in line for line in found), found[:5]
    # The definition, whose transforms know no layouts, is right but for these.
    rest = [line for line in check(CASES[name], reference, **small) if "strides" not in line]
    assert rest == [] or fault == "NaN of a sum is dropped"


def test_the_definition_is_held_to_the_oracle(monkeypatch) -> None:
    """A wrong reference is not excused by being what the kernels are compared with."""
    right = reference.fake_quantize
    monkeypatch.setattr(reference, "fake_quantize", lambda x, *a, **o: right(x, *a, **o) + 1.0)
    definition = next(iter(checks(CASES["fake_quantize"], definition=True)))
    assert definition.faults(reference)
    compared = next(iter(checks(CASES["fake_quantize"])))
    assert compared.faults(reference) == []


def test_a_choice_that_is_not_the_best_is_found() -> None:
    x = search_range.distribution("cubed", 3000)
    low, high = torch.aminmax(x)
    index, worse = search_range.excess(x, reference.search_range(x, 4))
    assert worse <= search_range.EXCESS
    factor = torch.tensor(1 - 0.01 * (index + 1))
    assert search_range.excess(x, (low * factor, high * factor))[1] > search_range.EXCESS
    assert search_range.excess(x, (low, high * factor))[0] == -1


def test_the_bound_of_the_filters_can_fail() -> None:
    case, x = CASES["low_pass"], torch.randn(2, 3, 32, 32).double()
    moved = case.oracle(x, cutoff=8.0) - case.oracle(x, cutoff=8.001)
    assert moved.abs().max() > case.values[0].atol


def test_every_public_op_has_a_case_with_reasons() -> None:
    assert set(CASES) == set(ops.__all__) - set(PRIVATE)
    for name, case in CASES.items():
        assert case.name == name
        samples = list(case.inputs())
        assert samples[0].reason == "typical" or name == "read_range"
        assert all(sample.reason for sample in samples)
        assert all(case.bytes_moved(sample) >= 0 for sample in samples)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.nearest])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_nearest_op_can_be_called(name: str) -> None:
    case: OpCase = CASES[name]
    tensors = case.typical().tensors
    leaves = [x.requires_grad_(i < case.differentiable) for i, x in enumerate(tensors)]
    case.nearest.prepare(*leaves)()


def test_layouts_keep_values_and_differ() -> None:
    x = torch.randn(2, 3, 4, 5)
    found = {layout: lay_out((x,), layout, (0,))[0] for layout in LAYOUTS}
    for layout, value in found.items():
        assert torch.equal(value, x) or layout == "expanded"
        half = converted(value, torch.float16)
        assert half.stride() == value.stride() and torch.equal(half, value.half())
        dense = torch.empty_like(value).stride() == value.stride()
        assert dense == (layout in DENSE)
    assert len({(v.stride(), v.data_ptr() % 16) for v in found.values()}) == len(LAYOUTS)
    assert lay_out((x[0],), "channels_last", (0,)) is None


@pytest.mark.parametrize("name", reference.__all__)
def test_reference_has_the_same_signature(name: str) -> None:
    public, twin = (inspect.signature(getattr(module, name)) for module in (ops, reference))
    assert [(p.name, p.default, p.kind) for p in public.parameters.values()] == [
        (p.name, p.default, p.kind) for p in twin.parameters.values()
    ]


@pytest.mark.parametrize("name", reference.__all__)
def test_public_names_explain_themselves(name: str) -> None:
    documentation = getattr(ops, name).__doc__
    assert "Args:" in documentation and "Raises:" in documentation
