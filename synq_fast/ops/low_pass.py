"""Low-pass filters in the frequency domain."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._definitions.low_pass import KINDS
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_integer,
    check_number,
    shape_text,
)
from synq_fast.reference.low_pass import low_pass as _reference

_default = torch.ops.synq_fast.low_pass.default
_triton = torch.ops.synq_fast.low_pass.triton


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
        overriding: torch.Tensor = overridden(low_pass, locals())
        return overriding
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (..., H, W), got {shape_text(x)}")
    # Its square is divided by.
    check_number("cutoff", cutoff, above=0, least=1e-100, most=1e100)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    check_integer("order", order, 1)
    backend = select("low_pass", x.device)
    if backend == "reference" or x.dtype == torch.float64:
        return _reference(x, cutoff, kind=kind, order=order)
    op = _triton if backend == "triton" else _default
    result: torch.Tensor = op(x, cutoff, kind, order)
    return result
