"""What a call costs beside its work: each registered op on a tiny tensor, beside an ATen op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from synq_fast import ops

from . import harness

BITS = 4
CALLS, ROUNDS = 1000, 10
# What a call may cost, in calls of the ATen op.
REGISTERED_LIMIT, PUBLIC_LIMIT = 1.2, 2.0
LAST = 2**BITS - 1

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Neighbour:
    """An op and the ATen call that is nearest to it in arguments and outputs.

    Attributes:
        op: Name of the registered op, to which the public function must lead.
        inputs: Makes the tensors; those of float type get gradients when these are recorded.
        public: The call of our public function.
        aten_name: The ATen op or ops.
        aten: Their call.
        differentiable: How many leading inputs take part in autograd; 0 for none.
    """

    op: str
    inputs: Callable[[], Inputs]
    public: Callable[..., object]
    aten_name: str
    aten: Callable[..., object]
    differentiable: int = 1


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(harness.DEVICE)


def _with_range() -> Inputs:
    x = _noise(64, 64)
    return x, x.min(), x.max()


def _with_scale() -> Inputs:
    return _noise(64, 64), *(torch.full((1,), value, device=harness.DEVICE) for value in (4.0, 8.0))


def _with_state() -> Inputs:
    zeros = [torch.zeros((), device=harness.DEVICE) for _ in range(2)]
    return _noise(64, 64), *zeros, torch.zeros((), dtype=torch.int64, device=harness.DEVICE)


def _logits() -> Inputs:
    labels = torch.arange(16, device=harness.DEVICE) % 10
    return _noise(16, 10), _noise(16, 10).neg(), labels


def _layer() -> Inputs:
    return _noise(4, 16, 8, 8), _noise(16), _noise(16).abs()


def _map() -> Inputs:
    return _noise(4, 16, 8, 8), _noise(4, 16, 8, 8), _noise(4, 1, 32, 32).sigmoid()


def _aten_dynamic() -> Callable[[Tensor], object]:
    on = torch.ones(1, dtype=torch.int64, device=harness.DEVICE)
    low, high, scale = (torch.ones(1, device=harness.DEVICE) for _ in range(3))
    zero = torch.zeros(1, dtype=torch.int32, device=harness.DEVICE)
    fused = torch.fused_moving_avg_obs_fake_quant
    return lambda x: fused(x, on, on, low, high, scale, zero, 1.0, 0, LAST, 0, False, False)


def _aten_distillation(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    p, q = F.log_softmax(teacher / 20, 1), F.log_softmax(student / 20, 1)
    kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
    return kl, F.cross_entropy(student, labels)


# A further op is one entry.
NEIGHBOURS = [
    Neighbour(
        "fake_quantize",
        _with_range,
        lambda x, low, high: ops.fake_quantize(x, low, high, BITS),
        "fake_quantize_per_tensor_affine",
        lambda x, *_: torch.fake_quantize_per_tensor_affine(x, 0.4, 8, 0, LAST),
    ),
    Neighbour(
        "fake_quantize_dynamic",
        lambda: (_noise(64, 64),),
        lambda x: ops.fake_quantize_dynamic(x, BITS),
        "fused_moving_avg_obs_fake_quant",
        _aten_dynamic(),
    ),
    Neighbour(
        "fake_quantize_learned",
        _with_scale,
        lambda x, scale, zero: ops.fake_quantize_learned(x, scale, zero, BITS),
        "_fake_quantize_learnable_per_tensor_affine",
        lambda x, scale, zero: torch._fake_quantize_learnable_per_tensor_affine(
            x, scale, zero, 0, LAST, 1.0
        ),
        differentiable=3,
    ),
    Neighbour(
        "relu_fake_quantize",
        _with_range,
        lambda x, low, high: ops.relu_fake_quantize(x, low, high, BITS),
        "relu + fake_quantize_per_tensor_affine",
        lambda x, *_: torch.fake_quantize_per_tensor_affine(x.relu(), 0.4, 8, 0, LAST),
    ),
    Neighbour(
        "affine_relu_fake_quantize",
        _layer,
        lambda x, weight, bias: ops.affine_relu_fake_quantize(x, weight, bias, 0.0, 2.0, BITS),
        "batch_norm + relu + fake_quantize_per_tensor_affine",
        lambda x, weight, bias: torch.fake_quantize_per_tensor_affine(
            F.batch_norm(x, bias, bias.abs(), weight).relu(), 0.4, 8, 0, LAST
        ),
    ),
    Neighbour(
        "channel_moments",
        lambda: _layer()[:1],
        lambda x: ops.channel_moments(x),
        "var_mean",
        lambda x: torch.var_mean(x, (2, 3), correction=0),
    ),
    Neighbour(
        "total_variation",
        lambda: _layer()[:1],
        lambda x: ops.total_variation(x),
        "sub + vector_norm",
        lambda x: torch.linalg.vector_norm(x[..., 1:] - x[..., :-1]),
    ),
    Neighbour(
        "quantize_codes",
        _with_range,
        lambda x, low, high: ops.quantize_codes(x, low, high, BITS),
        "quantize_per_tensor",
        lambda x, *_: torch.quantize_per_tensor(x, 0.4, 8, torch.qint8),
        differentiable=0,
    ),
    Neighbour(
        "update_range",
        _with_state,
        lambda x, low, high, step: ops.update_range(x, low, high, step),
        "aminmax",
        lambda x, *_: torch.aminmax(x),
        differentiable=0,
    ),
    Neighbour(
        "low_pass",
        lambda: (_noise(2, 3, 16, 16),),
        lambda x: ops.low_pass(x, 5.0),
        "fft_rfft2",
        lambda x: torch.fft.rfft2(x),
    ),
    Neighbour(
        "grad_cam",
        _map,
        lambda activations, gradients, _: ops.grad_cam(activations, gradients, (32, 32)),
        "upsample_bilinear2d",
        lambda activations, *_: F.interpolate(activations, (32, 32), mode="bilinear"),
    ),
    Neighbour(
        "cam_alignment_loss",
        _map,
        ops.cam_alignment_loss,
        "upsample_bilinear2d + mse_loss",
        lambda a, _, target: F.mse_loss(F.interpolate(a[:, :1], (32, 32), mode="bilinear"), target),
    ),
    Neighbour(
        "distillation_loss",
        _logits,
        ops.distillation_loss,
        "kl_div + cross_entropy",
        _aten_distillation,
    ),
    Neighbour(
        "bn_statistics_loss",
        _layer,
        ops.bn_statistics_loss,
        "var_mean",
        lambda x, *_: torch.var_mean(x, (0, 2, 3), correction=0),
    ),
]


class _Recorder(TorchDispatchMode):
    """Notes the first call of a registered op, with the arguments the public function gives it.

    An op may have a second form that also computes what its gradient needs, `<op>_with_gradient`.
    """

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.call: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        names = f"synq_fast.{self.op}.", f"synq_fast.{self.op}_"
        if self.call is None and str(func).startswith(names):
            self.call = func, tuple(args), kwargs or {}
        return func(*args, **(kwargs or {}))


def registered_call(
    neighbour: Neighbour, inputs: Inputs
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the op's overload and the arguments that the public function leads to.

    Raises:
        LookupError: There is no such op, or the public function does not call it here.
    """
    if not hasattr(torch.ops.synq_fast, neighbour.op):
        raise LookupError(f"{neighbour.op} is not a registered op")
    with _Recorder(neighbour.op) as recorder:
        neighbour.public(*inputs)
    if recorder.call is None:
        raise LookupError(f"{neighbour.op} runs on the reference here")
    call: tuple[Any, tuple[Any, ...], dict[str, Any]] = recorder.call
    return call


CASES = [
    pytest.param(neighbour, gradient, id=f"{neighbour.op}-{name}")
    for neighbour in NEIGHBOURS
    for gradient, name in ((False, "inference"), (True, "recording"))
    if neighbour.differentiable or not gradient
]


@pytest.mark.parametrize("allocator", ["default"], indirect=True)
@pytest.mark.parametrize(("neighbour", "gradient"), CASES)
def bench_call_overhead(
    neighbour: Neighbour, gradient: bool, compare: Callable[..., harness.Comparison]
) -> None:
    """The registered op and the public function against ATen's op, 10,000 calls of each."""
    inputs = neighbour.inputs()
    for x in inputs[: neighbour.differentiable]:
        x.requires_grad_(gradient)
    try:
        overload, arguments, options = registered_call(neighbour, inputs)
    except LookupError as reason:
        pytest.skip(str(reason))
    packet, aten, public = overload.overloadpacket, neighbour.aten, neighbour.public
    aten_name = f"aten {neighbour.aten_name}"
    x = inputs[0]
    compare(
        f"{neighbour.op} {'x'.join(map(str, x.shape))}"
        f", {'recording a gradient' if gradient else 'no gradient'}",
        {
            "registered op": lambda: packet(*arguments, **options),
            "registered op, its overload": lambda: overload(*arguments, **options),
            "public function": lambda: public(*inputs),
            aten_name: lambda: aten(*inputs),
            "clone": x.clone,
        },
        ours="registered op",
        elements=x.numel(),
        limits={
            "registered op": (aten_name, REGISTERED_LIMIT),
            "public function": (aten_name, PUBLIC_LIMIT),
        },
        rounds=ROUNDS,
        calls=CALLS,
        warmup=100,
        clock="wall",
    )
