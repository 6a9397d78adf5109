"""The registered ops inside PyTorch's own machinery."""

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.testing import CASES, EXACT, OpCase, Sample
from synq_fast.testing.conformance import close, run, same_bits, weights
from tests.conformance.registered import (
    MANY,
    NAMES,
    calls,
    fallback,
    fresh,
    gradient_choices,
    results,
)
from tests.conformance.targets import INTERPRETED, Target, native, parameters, using

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
every_op = pytest.mark.parametrize("name", CASES)
on_every_target = pytest.mark.parametrize("target", parameters())


def kinds(case: OpCase) -> dict[str, Sample]:
    """The typical sample in what the registrations must know about: types, strides, sizes."""
    sample = case.typical()
    found = {"typical": sample}
    for i, options in enumerate(case.variants):
        found[f"variant {i}"] = sample._replace(options={**sample.options, **options})

    def changed(name: str, change) -> None:
        tensors = [change(x) if i in case.cast else x for i, x in enumerate(sample.tensors)]
        found[name] = sample._replace(tensors=tuple(tensors))

    if case.cast:
        changed("half", torch.Tensor.half)
        changed("strided", lambda x: torch.stack([x, x], -1)[..., 0])
    if sample.tensors[0].ndim == 4:
        changed(
            "channels_last, bfloat16",
            lambda x: x.bfloat16().to(memory_format=torch.channels_last),
        )
    return found


@pytest.mark.compile
@on_every_target
@every_op
def test_opcheck(name: str, target: Target) -> None:
    """Schema, fake results, autograd registration and the compiler, of every op that is called."""
    case, count = CASES[name], 0
    with using(target):
        if target.backend == "reference":
            pytest.skip("the reference is no registered op")
        found = kinds(case)
        # A variant may have derivatives of its own; of many, the typical call's subsets are enough.
        alone = [k for k in found if case.differentiable <= MANY and k.startswith("variant")]
        alone.append("typical")
        for kind, sample in found.items():
            if INTERPRETED and kind != "typical" and not case.exact:
                continue  # minutes of inner loops
            made = calls(case, sample)
            # Which tensors get gradients is nothing to the kernels' backend: the interpreter runs
            # the call with the most of them, the native kernels run every kind.
            fullest = {}
            for call in sorted(made, key=lambda call: -call.trained):
                fullest.setdefault(call.name, call)
            # The interpreter's share of what the compiler does is tested without kernels, where the
            # same registrations run in plain PyTorch.
            few = INTERPRETED or case.differentiable > MANY
            for call in made:
                most = call is fullest[call.name]
                if not most and (INTERPRETED or kind not in alone):
                    continue  # that gradients come alone was seen in the typical call
                checks = {"test_utils": ("test_schema", "test_faketensor")}
                whole = most and kind == "typical" and not INTERPRETED
                # A type is the fake's business alone; strides and sizes also the compiler's.
                fewer = checks if (few or kind == "half") and not whole else {}
                torch.library.opcheck(call.op, fresh(call), call.options, **fewer)
                count += 1
    assert count or name == "read_range"


def test_every_registered_op_is_covered() -> None:
    native()
    found = {
        call.name
        for case in CASES.values()
        for sample in kinds(case).values()
        for call in calls(case, sample)
    }
    assert found >= set(NAMES)


@every_op
def test_the_fallback_equals_the_kernels(name: str) -> None:
    """What runs where no kernel is built gives the same values, shapes and strides."""
    native()
    for sample in kinds(CASES[name]).values():
        for call in calls(CASES[name], sample):
            with torch.no_grad():
                before = [x.clone() if torch.is_tensor(x) else x for x in call.arguments]
                actual = call.op(*call.arguments, **call.options)
                expected = fallback(call.name)(*before, **call.options)
            if not isinstance(actual, tuple):
                actual, expected = (actual,), (expected,)
            for mine, theirs in zip(actual, expected, strict=True):
                if isinstance(mine, list):
                    continue
                if mine is not None:
                    assert mine.stride() == theirs.stride(), call
                    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)


@on_every_target
@every_op
def test_only_the_gradients_asked_for(name: str, target: Target) -> None:
    """Each tensor's gradient alone is the one among all, and none changes a value."""
    case = CASES[name]
    with using(target):
        for kind, sample in kinds(case).items():
            if INTERPRETED and not kind.startswith(("typical", "variant")):
                continue  # types and strides say nothing about what is left out
            found = {
                trained: results(case, sample, trained)
                for trained in gradient_choices(case, sample)
            }
            values = len(case.values)
            everything = found[max(found, key=len)]
            for trained, mine in found.items():
                for one, other in zip(mine[:values], everything[:values], strict=True):
                    assert torch.equal(one.nan_to_num(), other.nan_to_num()), trained
                if len(trained) == 1 and len(everything) > values:
                    other = everything[values + trained[0]]
                    assert torch.equal(mine[values], other), trained


@on_every_target
@every_op
def test_second_derivative(name: str, target: Target) -> None:
    """Right where there is one, refused where there is none."""
    case = CASES[name]
    if not case.differentiable:
        pytest.skip(f"{name} has no gradient")
    if target.backend == "reference" and not case.second_derivative:
        pytest.skip("the reference is plain PyTorch")
    sample = case.typical()
    with using(target) as namespace:
        tensors = [x.to(target.device) for x in sample.tensors]
        leaf = tensors[0].detach().requires_grad_()
        given = case.call(namespace, leaf, *tensors[1:], **sample.options)
        y = given[0] if isinstance(given, tuple) else given
        incoming = weights(y.detach(), 0).requires_grad_()
        if not case.second_derivative:
            with pytest.raises(NotImplementedError, match="differentiated once"):
                (gradient,) = torch.autograd.grad(y, leaf, incoming, create_graph=True)
                gradient.sum().backward()
            return
        (gradient,) = torch.autograd.grad(y, leaf, incoming, create_graph=True)
        # Linear in what comes in: the derivative by it is what a tangent of ones becomes.
        (again,) = torch.autograd.grad(gradient, incoming, torch.ones_like(gradient))
        assert again.shape == y.shape and again.any()
        product = (again * incoming.detach()).sum()
        torch.testing.assert_close(product, gradient.detach().sum(), atol=1e-4, rtol=1e-4)


@on_every_target
@every_op
def test_saved_tensors(name: str, target: Target) -> None:
    """What is kept for the backward pass is no more than the case says; nothing without one."""
    case, sample = CASES[name], CASES[name].typical()
    for trained, limit in (((), 0), (tuple(range(case.differentiable)), case.saves)):
        if limit is None or (trained and target.backend == "reference"):
            continue
        saved: list[torch.Tensor] = []
        with using(target) as namespace:
            leaves = [
                x.to(target.device).requires_grad_(i in trained)
                for i, x in enumerate(sample.tensors)
            ]
            with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
                case.call(namespace, *leaves, **sample.options)
        assert sum(x.numel() for x in saved) <= limit, [tuple(x.shape) for x in saved]


@on_every_target
@every_op
def test_autocast_changes_nothing(name: str, target: Target) -> None:
    case, sample = CASES[name], CASES[name].typical()
    # PyTorch's own products of the reference's backward pass follow autocast.
    everything = () if target.backend == "reference" else tuple(range(case.differentiable))
    with using(target):
        moved = sample._replace(tensors=tuple(x.to(target.device) for x in sample.tensors))
        expected = results(case, moved, everything)
        # What a kernel's own Python would cast shows with either type.
        for dtype in (torch.bfloat16,) if INTERPRETED else (torch.bfloat16, torch.float16):
            with torch.autocast(target.device, dtype=dtype):
                actual = results(case, moved, everything)
            for mine, theirs in zip(actual, expected, strict=True):
                assert same_bits(mine, theirs) == ""


@on_every_target
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_op
def test_half_types_are_computed_in_float32(name: str, dtype: torch.dtype, target: Target) -> None:
    """Values are those of the same numbers in float32, rounded once if they have the type."""
    case, sample = CASES[name], CASES[name].typical()
    if not case.cast:
        pytest.skip(f"{name} takes no half types")
    with using(target) as namespace:
        results = []
        for wide in (False, True):
            tensors = [
                (x.to(dtype).float() if wide else x.to(dtype)) if i in case.cast else x
                for i, x in enumerate(sample.tensors)
            ]
            tensors = [x.to(target.device) for x in tensors]
            results.append(
                run(lambda *x, **o: case.call(namespace, *x, **o), tensors, sample.options, 0)
            )
        for mine, theirs in zip(results[0].values, results[1].values, strict=True):
            assert same_bits(mine, theirs.to(mine.dtype)) == ""
        assert case.same_type == (results[0].values[0].dtype == dtype)


@every_op
def test_inference_mode(name: str) -> None:
    native()
    case, sample = CASES[name], CASES[name].typical()
    with torch.inference_mode():
        actual = results(case, sample, ())
    for mine, theirs in zip(actual, results(case, sample, ()), strict=True):
        assert same_bits(mine.clone(), theirs) == ""


@every_op
def test_float64_runs_on_the_reference(name: str) -> None:
    """Where float64 is taken at all, it is computed in float64 whatever the backend."""
    case, sample = CASES[name], CASES[name].typical()
    if case.exact or case.quantizes or case.judge is not None or not case.cast:
        pytest.skip("its arithmetic is float32")
    wide = sample._replace(
        tensors=tuple(x.double() if x.is_floating_point() else x for x in sample.tensors)
    )
    oracle = case.oracle or (lambda *x, **o: case.call(reference, *x, **o))
    expected = run(oracle, wide.tensors, sample.options, case.differentiable)
    actual = run(
        lambda *x, **o: case.call(ops, *x, **o), wide.tensors, sample.options, case.differentiable
    )
    tolerance = EXACT._replace(atol=1e-11, rtol=1e-9)
    for mine, theirs in zip(actual.values, expected.values, strict=True):
        assert mine.dtype == torch.float64
        assert close(mine, theirs, tolerance) == ""
    for one, other in zip(
        actual.gradients["all results"], expected.gradients["all results"], strict=True
    ):
        assert close(one, other, tolerance) == ""


@every_op
def test_gradcheck(name: str) -> None:
    """The definition has the derivative that it says, where float64 and steps make sense."""
    case, sample = CASES[name], CASES[name].typical()
    if case.exact or not case.differentiable or not case.gradcheck:
        pytest.skip("straight through, or constants in its derivative")
    wide = [x.double() if x.is_floating_point() else x for x in sample.tensors]
    count = case.differentiable
    leaves = [x.requires_grad_() for x in wide[:count]]
    with ops.backend("reference"):

        def function(*tensors):
            given = case.call(ops, *tensors, *wide[count:], **sample.options)
            given = given if isinstance(given, tuple) else (given,)
            return tuple(y for y in given if y.requires_grad)

        assert torch.autograd.gradcheck(function, leaves)


@every_op
def test_an_unavailable_backend_is_an_error(name: str) -> None:
    if torch.cuda.is_available() or INTERPRETED or name == "read_range":
        pytest.skip("every backend is available, or there is one alone")
    case, sample = CASES[name], CASES[name].typical()
    for backend in ("cuda", "triton"):
        with ops.backend(backend), pytest.raises(ops.BackendUnavailableError) as caught:
            case.call(ops, *sample.tensors, **sample.options)
        assert f"the backend '{backend}' is not available" in str(caught.value)
        assert "Available for this op on cpu: reference" in str(caught.value)
