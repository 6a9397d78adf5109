"""The distance in structure between what a student's and a teacher's heads give."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise, uniform

SHAPES = {
    (1, 1, 1, 1): "one position, which is its own mean",
    (2, 3, 1, 7): "one position of several channels",
    (2, 1, 9, 1): "one channel",
    (2, 3, 7, 5): "fewer channels than any vector, odd",
    (1, 2, 10, 16): "one vector of channels",
    (2, 2, 5, 33): "a vector and one channel more",
    (1, 2, 70, 40): "more positions than a tile has",
    (3, 1, 33, 64): "channels of a head",
    (2, 2, 4, 530): "more channels than are read at a time",
    (0, 2, 5, 3): "no image",
    (2, 0, 5, 3): "no head",
    (2, 2, 5, 0): "no channel",
}
LARGE = {
    (4, 3, 196, 64): "DeiT-tiny",
    (40, 3, 49, 32): "Swin windows",
    (1, 1, 3001, 24): "many positions",
}


def call(
    namespace: Any, student: torch.Tensor, teacher: torch.Tensor, *weight: torch.Tensor
) -> torch.Tensor:
    """Calls the op; the student comes first, because it alone gets a gradient."""
    loss: torch.Tensor = namespace.structural_similarity_loss(teacher, student, *weight)
    return loss


def heads(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a student whose channels follow the teacher's more or less."""
    teacher = noise(*shape, seed=1)
    return 0.7 * teacher + 0.5 * noise(*shape, seed=2), teacher


def inputs() -> Iterator[Sample]:
    """Yields heads of every kind of size, with weights of every shape."""
    yield Sample("typical", (*heads(2, 3, 6, 4), uniform(2, 1, 6, seed=3)))
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for shape, reason in shapes.items():
            every_layout = not large and 0 not in shape
            yield Sample(reason, heads(*shape), large=large, every_layout=every_layout)
    batch, of_heads, positions = 2, 3, 9
    weights = (positions,), (batch, 1, positions), (batch, of_heads, positions), (1,)
    for sizes in weights:
        weight = uniform(*sizes, seed=4, low=0.1)
        tensors = (*heads(batch, of_heads, positions, 20), weight)
        yield Sample(f"weights {sizes}", tensors, every_layout=len(sizes) == 3)
    only = torch.zeros(positions, dtype=torch.float32, device="cpu")
    only[4] = 2.0
    yield Sample("the weight of one position alone", (*heads(1, 2, positions, 5), only))
    cut = tuple(x[:, :, 1:] for x in heads(2, 3, 11, 8))
    yield Sample("the class token cut off", cut)
    swapped = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in heads(2, 3, 6, 8))
    yield Sample("positions before heads in memory", swapped)
    student, teacher = heads(2, 2, 12, 6)
    yield Sample("means far from zero", (student + 300, teacher - 200))
    yield Sample("flat in both", (torch.ones_like(student), torch.ones_like(student) * 2))
    yield Sample("flat in one", (torch.ones_like(student), teacher))
    yield Sample("the teacher itself", (teacher.clone(), teacher))
    yield Sample("turned around", (-teacher, teacher))
    for value in (math.nan, math.inf, -math.inf):
        for which in (0, 1):
            pair = heads(2, 2, 6, 20)
            pair[which][1, 0, 3, 17] = value
            yield Sample(f"{value} in tensor {which}", pair, special=True)
    nothing = torch.zeros(6, dtype=torch.float32, device="cpu")
    yield Sample("weights of sum zero", (*heads(1, 1, 6, 3), nothing), special=True)


def oracle(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """The definition, from products before the means are taken off."""
    shape = student.shape[:-1]
    weight = student.new_ones(shape) if weight is None else weight.expand(shape)
    share = (weight / weight.sum(-1, keepdim=True)).unsqueeze(-1)

    def expected(x: torch.Tensor) -> torch.Tensor:
        return (share * x).sum(-2)

    mean, other = expected(student), expected(teacher)
    covariance = expected(student * teacher) - mean * other
    variances = expected(student**2) - mean**2 + expected(teacher**2) - other**2
    similarity = (2 * covariance + 9e-4) / (variances + 9e-4)
    return 1 - similarity.mean() if similarity.numel() else similarity.sum()


def units(sample: Sample) -> tuple[Any, ...]:
    """The rounding of what the means are taken off, and the greatest slope for it."""
    student, teacher = sample.tensors[:2]
    values = torch.cat([student.flatten(), teacher.flatten()]).double().nan_to_num(0, 0, 0)
    size = max(float(values.abs().max()), 1.0) if values.numel() else 1.0
    channels = max(student.numel() // max(student.shape[2], 1), 1)
    # At most one position's, over the least deviation, C2.
    return size, size / channels


def nearest(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> Any:
    """One of the three statistics, and the mean of it."""
    return lambda: (student * teacher).mean(2).mean()


CASE = OpCase(
    name="structural_similarity_loss",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(Tolerance(atol=2e-6),),
    gradients=(Tolerance(rtol=2e-5, atol=2e-6),),
    units=units,
    bytes_moved=lambda sample: nbytes(*sample.tensors),
    maps=False,
    cast=(0, 1),
    laid_out=(0, 1),
    nearest=Nearest(
        "mul + mean + mean", nearest, lambda n, q, t, w: n.structural_similarity_loss(t, q)
    ),
)
