"""Low-pass filters in the frequency domain."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_integer,
    check_number,
    shape_text,
)
from synq_fast.reference.low_pass import low_pass as _plain

Tensor = torch.Tensor
KINDS = ("gaussian", "butterworth", "ideal")
METHODS = ("auto", "matrix", "spectrum")


def _check(x: Tensor, cutoff: float, kind: str, order: int, method: str = "auto") -> None:
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (..., H, W), got {shape_text(x)}")
    # Its square is divided by.
    check_number("cutoff", cutoff, above=0, least=1e-100, most=1e100)
    for name, value, allowed in (("kind", kind, KINDS), ("method", method, METHODS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    check_integer("order", order, 1)


def _fake(x: Tensor, cutoff: float, kind: str, order: int, method: str = "auto") -> Tensor:
    _check(x, cutoff, kind, order, method)
    channels_last = torch.channels_last
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return torch.empty_like(x, memory_format=channels_last)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _reference(x: Tensor, cutoff: float, kind: str, order: int, method: str = "auto") -> Tensor:
    y = _plain(x, cutoff, kind=kind, order=order)
    return _fake(x, cutoff, kind, order, method).copy_(y)


_op = register(
    "low_pass",
    # The method is for measurements; "auto" takes the one that was found the faster.
    '(Tensor x, float cutoff, str kind, int order, str method="auto") -> Tensor',
    fake=_fake,
    reference=_reference,
    # A real and even filter is its own adjoint.
    gradients={"x": "low_pass(grad, cutoff, kind, order, method)"},
)


def low_pass(
    x: torch.Tensor, cutoff: float, *, kind: str = "gaussian", order: int = 2
) -> torch.Tensor:
    """Damps the high spatial frequencies of images, circularly (the borders wrap around).

    A frequency of `u` cycles per image height and `v` per image width, at distance
    `D = sqrt(u^2 + v^2)` from the centre, is multiplied by

    - gaussian: `exp(-D^2 / (2 cutoff^2))`,
    - butterworth: `1 / (1 + (D / cutoff)^(2 order))`,
    - ideal: 1 where `D <= cutoff`, else 0.

    The filter is linear and its own adjoint: backward is the same filter and saves nothing. It is
    computed in float32 (float64 for float64 input, by the reference), whatever the autocast state,
    and half types are rounded once at the end. The float32 error is at most 5e-6 on N(0, 1) input;
    on a GPU PyTorch's switch for TF32 in matrix products trades it for about 1e-3. A NaN or an
    infinity spreads over its image plane. channels_last images stay so, others become contiguous.

    No Fourier transform is needed. A circular filter is a product with a circulant matrix along
    each side, and the matrix of an even filter falls apart into small ones when a line is folded
    about its symmetries: about n / 6 multiplications a value. The Gaussian is one such product a
    side; for the other kinds the small matrices are the real Fourier transform and its inverse,
    with the gains between them. Sides too long for that (CPU: 1536 and 1024; GPU: 448, Triton
    1024, and the Gaussian alone) use `rfft2`. Matrices and gains are kept for the settings used
    last.

    Args:
        x: Images `(..., H, W)`, any leading dimensions, any H and W; float16, bfloat16, float32 or
            float64.
        cutoff: Distance D0 in cycles per image, 1e-100 to 1e100.
        kind: "gaussian", "butterworth" or "ideal".
        order: Order of the Butterworth filter, at least 1; the other kinds ignore it.

    Returns:
        The filtered images, with the shape and type of `x`.

    Raises:
        TypeError: `x` is not a floating tensor, `cutoff` not a number or `order` not an int.
        ValueError: `x` has fewer than two dimensions, `cutoff` or `order` is out of bounds, or
            `kind` is unknown.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: Gonzalez and Woods, "Digital Image Processing", chapter 4; used by SynQ (ICLR 2025).
    """
    if has_torch_function_unary(x):
        overriding: Tensor = overridden(low_pass, locals())
        return overriding
    op = _op.on(x)
    if op is None or bool in (type(cutoff), type(order)):
        _check(x, cutoff, kind, order)
        return _plain(x, cutoff, kind=kind, order=order)
    try:
        result: Tensor = op(x, cutoff, kind, order)
    except Exception as error:
        _op.refuse(error, x, cutoff, kind, order)
    return result
