"""How much the heads of attention differ in what they look at."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._autograd import recording_again
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_dims, check_float_tensor, shape_text
from synq_fast.reference.inter_head_similarity_loss import inter_head_similarity_loss as _plain

Tensor = torch.Tensor
MAXIMUM_HEADS = 64


def _check(logits: Tensor) -> None:
    check_float_tensor("logits", logits)
    check_dims("logits", logits, "B, H, N, M")
    _, heads, _, keys = logits.shape
    if heads == 0 or keys == 0:
        raise ValueError(
            f"logits must have at least one head and one key, got {shape_text(logits)}"
        )
    if heads > MAXIMUM_HEADS:
        raise ValueError(
            f"logits must have at most {MAXIMUM_HEADS} heads, got {heads} in {shape_text(logits)}"
        )


def _fake(logits: Tensor) -> Tensor:
    _check(logits)
    return logits.new_empty((), dtype=torch.float32)


def _fake_backward(grad: Tensor, logits: Tensor) -> Tensor:
    _check(logits)
    return torch.empty_like(logits)


def _reference_backward(grad: Tensor, logits: Tensor) -> Tensor:
    with torch.enable_grad(), recording_again():
        leaf = logits.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(_plain(leaf), leaf, grad.float())
    return like(gradient.to(logits.dtype), logits)


register(
    "inter_head_similarity_loss_backward",
    "(Tensor grad, Tensor logits) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="inter_head_similarity_loss",
)
_op = register(
    "inter_head_similarity_loss",
    "(Tensor logits) -> Tensor",
    fake=_fake,
    reference=_plain,
    gradients={"logits": "inter_head_similarity_loss_backward(grad, logits)"},
)


def inter_head_similarity_loss(logits: torch.Tensor) -> torch.Tensor:
    """Measures how much the heads of attention differ in what each query looks at.

    For each image and query, the logits of each head are scaled to 0..1 over the M keys,

        a = (l - min l) / (max l - min l + 1e-8)

    and each ordered pair of heads (h, g), a head with itself among them, has with means m, biased
    variances v and covariance c of a over the keys the structural similarity

        S = (2 m_h m_g + C1) (2 c + C2) / ((m_h^2 + m_g^2 + C1) (v_h + v_g + C2))

    with C1 = 1e-4 and C2 = 9e-4. The loss is the mean of `1 - S^2` over images, queries and pairs:
    zero where all heads look at the same, or at exactly the contrary.

    One query's heads are held at a time, never a tensor of all pairs of heads times keys. Nothing
    but `logits` is saved for the gradient. It reaches the least and the greatest logit of a row
    too, of several equal ones the first. Logits that were sliced, or whose heads and queries lie in
    another order in memory, are read where they are as long as keys are neighbours. Sums are in
    float32 or better, in a fixed order.

    Args:
        logits: Of attention before its softmax, `(B, H, N, M)`, with at most 64 heads; float16,
            bfloat16, float32 or float64 (float64 runs on the reference). Windows are images.

    Returns:
        A 0-d tensor, from 0 to 1; float32 (float64 for float64 logits) whatever the autocast state.
        Without a query it is zero. A NaN or an infinity makes it NaN, and the gradient of its
        query. The kernels know no second derivative.

    Raises:
        TypeError: `logits` is not a floating tensor.
        ValueError: `logits` is not `(B, H, N, M)` with 1 to 64 heads and at least one key.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Choi et al., "MimiQ: Low-Bit Data-Free Quantization of Vision Transformers with
    Encouraging Inter-Head Attention Similarity", AAAI 2025, inter-head similarity loss.
    """
    if has_torch_function_unary(logits):
        overriding: Tensor = overridden(inter_head_similarity_loss, locals())
        return overriding
    op = _op.on(logits)
    if op is None:
        _check(logits)
        return _plain(logits)
    try:
        result: Tensor = op(logits)
    except Exception as error:
        _op.refuse(error, logits)
    return result
