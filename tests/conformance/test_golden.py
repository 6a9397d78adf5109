"""The published code's values, from files, on every target."""

import pytest
import torch

from synq_fast.testing import EXACT, Tolerance
from synq_fast.testing.cases import _maps, bn_statistics_loss, distillation_loss, low_pass
from synq_fast.testing.conformance import close, same_bits
from tests.conformance.targets import Target, parameters, using
from tests.golden_cases import golden_cases

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
LARGEST_SLOW_SIDE = 40


@pytest.fixture(params=parameters(emulated=True))
def target(request) -> Target:
    return request.param


@pytest.fixture
def namespace(target):
    with using(target) as namespace:
        yield namespace


def put(case, target, *names):
    return [case[name].to(target.device) for name in names]


def test_fake_quantize(golden, namespace, target) -> None:
    """Values and, from codes and learned pairs, the same values again."""
    rectified = 0
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        x, low, high = put(case, target, "x", "min", "max")
        bits, shape = case["bits"], [-1] + [1] * (x.ndim - 1) if axis == 0 else []
        found = [namespace.fake_quantize(x, low, high, bits, axis=axis)]
        codes, scale, zero = namespace.quantize_codes(x, low, high, bits, axis=axis)
        found.append((codes + zero.reshape(shape)) / scale.reshape(shape))
        found.append(namespace.fake_quantize_learned(x, scale, zero, bits, axis=axis))
        if axis is None and x.min() >= 0:
            found.append(namespace.relu_fake_quantize(x, low, high, bits))
            rectified += 1
        y, *own = namespace.fake_quantize_dynamic(x, bits, axis=axis)
        rows = case["x"].flatten(1) if axis == 0 else case["x"].reshape(1, -1)
        assert torch.equal(own[0].cpu().reshape(-1), rows.amin(1)), name
        assert torch.equal(own[1].cpu().reshape(-1), rows.amax(1)), name
        # The clipped cases have a range that is not the data's, the zeros after a ReLU too.
        if torch.equal(own[0].cpu(), case["min"]) and torch.equal(own[1].cpu(), case["max"]):
            found.append(y)
        for value in found:
            assert torch.equal(value.cpu(), case["y"]), name
    assert rectified


def test_low_pass(golden, namespace, target) -> None:
    for _, case in golden_cases(golden("low_pass")):
        x, y = case["x"], case["y"]
        if target.slow:
            if x.shape[-1] >= LARGEST_SLOW_SIDE:
                continue
            x, y = x[:1].contiguous(), y[:1]
        actual = namespace.low_pass(x.to(target.device), case["d0"]).cpu()
        assert close(actual, y, low_pass.FILTERED) == ""


def test_grad_cam(golden, namespace, target) -> None:
    for _, case in golden_cases(golden("grad_cam")):
        if case["kind"] == "grad_cam":
            a, g, cam = put(case, target, "activations", "gradients", "map")
            size, expected = tuple(case["size"].tolist()), case["map"]
            if target.slow:
                a, g, cam, expected = (x[:1].contiguous() for x in (a, g, cam, expected))
            assert close(namespace.grad_cam(a, g, size).cpu(), expected, _maps.MAP) == ""
            assert float(namespace.cam_alignment_loss(a, g, cam)) < 1e-6


def test_distillation(golden, namespace, target) -> None:
    for _, case in list(golden_cases(golden("distillation")))[:: 4 if target.slow else 1]:
        numbers = [round(case[key], 6) for key in ("temperature", "alpha", "tau")]
        options = dict(zip(("temperature", "alpha", "difficulty_threshold"), numbers, strict=True))
        student, teacher, labels = put(case, target, "student", "teacher", "labels")
        student.requires_grad_()
        kl, ce, difficulty = namespace.distillation_loss(student, teacher, labels, **options)
        expected = distillation_loss.oracle(
            case["student"].double(), case["teacher"].double(), case["labels"], **options
        )
        factor = options["alpha"] * options["temperature"] ** 2
        kinds = distillation_loss.CASE.values
        for mine, theirs, tolerance, unit in zip(
            (kl, ce, difficulty), expected, kinds, (factor, 5.0, 1.0), strict=True
        ):
            assert close(mine.detach().cpu(), theirs, tolerance, unit) == ""
        # The published divergence carries a constant of at most 1e-7 a factor.
        assert close(kl.detach().cpu(), torch.tensor(case["kl"]), kinds[0], factor) == ""
        assert close(difficulty.cpu(), case["difficulty"], kinds[2]) == ""
        for loss, name in ((kl, "grad_kl"), (ce, "grad_ce")):
            (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
            tolerance = distillation_loss.GRADIENT
            assert close(gradient.cpu(), case[name], tolerance, options["alpha"]) == ""


def test_bn_statistics(golden, namespace, target) -> None:
    for _, case in golden_cases(golden("bn_statistics")):
        x, mean, var = put(case, target, "x", "running_mean", "running_var")
        losses = namespace.bn_statistics_loss(x.requires_grad_(), mean, var)
        for loss, name in zip(losses, ("mean_loss", "var_loss"), strict=True):
            expected = torch.as_tensor(case[name])
            assert close(loss.detach().cpu(), expected, bn_statistics_loss.LOSS) == ""
        (gradient,) = torch.autograd.grad(sum(losses), x)
        assert close(gradient.cpu(), case["grad"], Tolerance(atol=1e-8, rtol=1e-5)) == ""


def test_search_range(golden, namespace, target) -> None:
    if target.backend == "triton" and target.slow:
        pytest.skip("eighty passes of the interpreter")
    for _, case in golden_cases(golden("mse_range")):
        found = namespace.search_range(case["x"].to(target.device), case["bits"])
        assert [float(value) for value in found] == [case["min"], case["max"]]
        assert found[0].shape == () and found[0].dtype == torch.float32


def test_the_comparisons_can_fail() -> None:
    y = torch.randn(9)
    assert same_bits(y, -y) and same_bits(y, y.double()) and same_bits(y, y[:8])
    assert close(y, y.double() + 1e-5, Tolerance(atol=1e-6)) and close(y, -y.double(), EXACT)
