"""The registered quantization ops inside PyTorch's own machinery."""

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import assert_same
from tests.ops.processes import results, run

LOW, HIGH = torch.tensor(-1.0), torch.tensor(1.0)
WEIGHT = torch.randn(4, 3, 3, 3)
IMAGE = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
STRIDED = torch.randn(4, 6)[:, ::2]
LOWS, HIGHS = torch.full((3,), -1.0), torch.full((3,), 1.0)
NAMES = (
    "fake_quantize",
    "fake_quantize_backward",
    "fake_quantize_dynamic",
    "quantize_codes",
    "fake_quantize_learned",
    "fake_quantize_learned_backward",
    "relu_fake_quantize",
    "relu_fake_quantize_backward",
    "affine_relu_fake_quantize",
    "affine_relu_fake_quantize_backward",
)


def arguments(name, x, low, high, axis):
    grad, saved = torch.ones_like(x), x.detach()
    grouped = axis, None if axis is None else 1
    if axis is not None and name in NAMES[:4]:
        low, high = low[:1], high[:1]
    scale, zero = torch.full_like(low, 7.5), torch.full_like(low, 0.3)
    if name == "fake_quantize_learned" and x.requires_grad:
        scale, zero = scale.requires_grad_(), zero.requires_grad_()
    weight, bias = torch.ones(2, x.shape[1]).unbind()
    affine = weight, bias, None, LOW, HIGH, 4
    residual = saved.flip(0)
    summand = residual.clone().requires_grad_(x.requires_grad)
    return {
        "fake_quantize": [(x, low, high, 4, *grouped, clip) for clip in (False, True)],
        "fake_quantize_backward": [(grad, saved, low, high, 4, *grouped)],
        "fake_quantize_dynamic": [(x, 4, *grouped, clip, clip) for clip in (False, True)],
        "quantize_codes": [(x, low, high, bits, *grouped) for bits in (4, 12)],
        "fake_quantize_learned": [(x, scale, zero, 4, axis, 0.5)],
        "fake_quantize_learned_backward": [(grad, saved, scale, zero, 4, axis, 0.5)],
        "relu_fake_quantize": [
            (x, low, high, 4, axis, None, False),
            (x, low, high, 4, axis, 6.0, True),
        ],
        "relu_fake_quantize_backward": [(grad, saved, low, high, 4, axis, 6.0, True)],
        "affine_relu_fake_quantize": [
            (x, *affine, None, False),
            (x, weight, bias, summand, LOW, HIGH, 4, 6.0, True),
        ],
        "affine_relu_fake_quantize_backward": [
            (grad, saved, *affine, None, False, parameters, False) for parameters in (False, True)
        ]
        + [
            (grad, saved, weight, bias, residual, LOW, HIGH, 4, None, True, True, wanted)
            for wanted in (False, True)
        ],
    }[name]


@pytest.mark.compile
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "axis"),
    [(WEIGHT, None), (IMAGE, 1), (IMAGE.half(), None), (STRIDED, 1), (torch.empty(0, 3), 1)],
    ids=["weight", "channels_last", "half", "strided", "empty"],
)
def test_opcheck(name, x, axis):
    if name == "fake_quantize_dynamic" and x.numel() == 0:
        pytest.skip("opcheck takes the NaN range of an empty tensor for a difference")
    low, high = (LOW, HIGH) if axis is None else (LOWS, HIGHS)
    op = getattr(torch.ops.synq_fast, name).default
    for requires_grad in (False, True):
        leaf = x.detach().requires_grad_(requires_grad)
        for args in arguments(name, leaf, low, high, axis):
            torch.library.opcheck(op, args)


def model(x, low, high):
    y = ops.fake_quantize(x, low, high, 4, ste="clip")
    y = ops.fake_quantize(y * 2, -1.5, 1.5, 3)
    y = ops.fake_quantize_learned(y, 2.5, 0.2, 4, gradient_scale=0.5) - 0.1
    y = y + ops.relu_fake_quantize(y, low, high, 4, upper=0.9, ste="clip")
    y = y + ops.affine_relu_fake_quantize(y, y.detach().amax((0, 2, 3)), HIGHS, 0.0, 2.0, 8)
    y = ops.affine_relu_fake_quantize(y, HIGHS, LOWS, 0.0, 2.0, 8, residual=y + 0.3)
    z, first, last = ops.fake_quantize_dynamic(y, 4, axis=1)
    codes, scale, zero_point = ops.quantize_codes(z, first, last, 4, axis=1)
    return z.sum() + ((codes + zero_point[:, None, None]) / scale[:, None, None]).sum(), z


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for x in (IMAGE, torch.cat([IMAGE, IMAGE])):
        results = []
        for call in (model, compiled):
            leaf = x.detach().clone().requires_grad_()
            with ops.backend(backend):
                loss, z = call(leaf, LOW, HIGH)
            loss.backward()
            results.append((z.detach(), leaf.grad))
        for actual, expected in zip(*results, strict=True):
            assert_same(actual, expected)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor():
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert_same(compiled(IMAGE, LOW, HIGH)[1], model(IMAGE, LOW, HIGH)[1])


@pytest.mark.compile
def test_export():
    class Module(torch.nn.Module):
        def forward(self, x):
            return ops.fake_quantize(ops.fake_quantize_dynamic(x, 4, axis=0)[0], -1.0, 1.0, 8)

    program = torch.export.export(Module(), (IMAGE,), dynamic_shapes=({0: torch.export.Dim("n")},))
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.synq_fast.fake_quantize.default in names
    x = torch.randn(7, 3, 5, 5)
    assert_same(program.module()(x), Module()(x))


def test_a_choice_that_cannot_run_explains_itself():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for name in ("cuda", "triton"):
        with ops.backend(name), pytest.raises(ops.BackendUnavailableError) as caught:
            ops.fake_quantize(WEIGHT, LOW, HIGH, 4)
        message = str(caught.value)
        assert f"the backend '{name}' is not available" in message
        assert "Available for this op on cpu: reference" in message
    with pytest.raises(ops.BackendUnavailableError, match="runs on CUDA tensors"):
        torch.ops.synq_fast.fake_quantize.triton(WEIGHT, LOW, HIGH, 4, None, None, False)
    with pytest.raises(ValueError, match="backend must be one of auto"), ops.backend("gpu"):
        pass
    assert ops.current_backend() == "auto"


def test_initial_choice_comes_from_the_environment():
    code = "from synq_fast import ops; print(ops.current_backend())"
    assert run(code, SYNQ_FAST_BACKEND="reference").stdout == "reference\n"
    assert "SYNQ_FAST_BACKEND must be one of" in run(code, SYNQ_FAST_BACKEND="gpu").stderr


PROGRAM = """
import torch
from synq_fast import ops
from tests.ops.test_quantization_registration import HIGH, IMAGE, LOW, NAMES, arguments, model

leaf = torch.linspace(-2, 2, 150).view(2, 3, 5, 5).requires_grad_()
loss, z = model(leaf, LOW, HIGH)
loss.backward()
twin = leaf.detach().clone().requires_grad_()
torch.ops.synq_fast.fake_quantize(twin, LOW, HIGH, 4, None, None, True).sum().backward()
print(ops.available_backends()["cpu"])
print([tensor.sum().item() for tensor in (loss, z, leaf.grad, twin.grad)])
"""

CHECKS = """
low, high = torch.full((3,), -1.0), torch.full((3,), 1.0)
for name in NAMES:
    for args in arguments(name, IMAGE.detach().requires_grad_(), low, high, 1):
        torch.library.opcheck(getattr(torch.ops.synq_fast, name).default, args)
"""


@pytest.mark.slow
def test_without_the_extension():
    """The same program with and without native kernels: Python registrations take over."""
    bare, native = results(PROGRAM, CHECKS)
    assert bare == native
