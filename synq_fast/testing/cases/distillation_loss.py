"""The losses of a student on a teacher's logits."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Nearest, OpCase, Sample, Tolerance, nbytes, noise

SHAPES = {
    (1, 2): "one image, the fewest classes",
    (3, 2): "fewer classes than any vector",
    (5, 10): "CIFAR-10",
    (2, 129): "one class more than whole vectors of 16-bit elements",
    (3, 1000): "ImageNet",
    (2, 2056): "more than one block of threads takes at once",
}
LARGE = {
    (40, 1025): "shared between threads, beyond a power of two",
    (300, 33): "many rows",
    (70, 1000): "a batch of ImageNet",
}
# The divergence sums differences of log-probabilities, each right to about 1e-7, and is multiplied
# by alpha T^2: the bound is for a factor of one.
KL = Tolerance(atol=3e-7, rtol=1e-5)
GRADIENT = Tolerance(atol=1e-6, rtol=1e-5)


def call(
    namespace: Any,
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    **options: Any,
) -> Any:
    """Calls the op."""
    return namespace.distillation_loss(student, teacher, labels, **options)


def logits(batch: int, classes: int) -> tuple[torch.Tensor, ...]:
    """Returns student, teacher and labels; the teacher is sure of every second."""
    student, teacher = noise(batch, classes, scale=3.0), noise(batch, classes, seed=1, scale=3.0)
    labels = torch.arange(batch, device="cpu") * 7 % classes
    teacher[torch.arange(batch, device="cpu")[::2], labels[::2]] += 12
    return student, teacher, labels


def inputs() -> Iterator[Sample]:
    """Yields logits of every kind of size, and those that overflow where nobody is careful."""
    labels = torch.tensor([1, 2, 0, 3], device="cpu")
    options = {"temperature": 4.0, "alpha": 3.0, "difficulty_threshold": 0.9}
    yield Sample("typical", (noise(4, 5, seed=1), noise(4, 5, seed=2), labels), options)
    for shapes, large in ((SHAPES, False), (LARGE, True)):
        for shape, reason in shapes.items():
            yield Sample(reason, logits(*shape), options, every_layout=shape[0] < 10, large=large)
    for temperature, alpha in ((20.0, 20.0), (1.0, 1.0), (0.5, 3.0)):
        numbers = {"temperature": temperature, "alpha": alpha}
        yield Sample(f"temperature {temperature}", logits(7, 10), numbers)
    student, teacher, labels = logits(3, 5)
    yield Sample("no image", (student[:0], teacher[:0], labels[:0]), options)
    inf, nan = float("inf"), float("nan")
    student = torch.tensor([[3e4, -3e4, 0.0], [-inf, 0.0, 1.0], [1.0, nan, 2.0]], device="cpu")
    teacher = torch.tensor([[3e4, -3e4, 0.0], [9.0, -inf, 0.0], [0.0, 9.0, 0.0]], device="cpu")
    labels = torch.tensor([0, 1, 1], device="cpu")
    numbers = {"temperature": 2.0, "alpha": 1.0, "difficulty_threshold": 0.5}
    for rows in ([0], [1], [2], [0, 1, 2]):
        tensors = student.float()[rows], teacher.float()[rows], labels[rows]
        yield Sample(f"special values in rows {rows}", tensors, numbers, special=True)


def oracle(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 20.0,
    alpha: float = 20.0,
    difficulty_threshold: float = 0.5,
) -> tuple[torch.Tensor, ...]:
    """The definition."""
    batch = max(len(labels), 1)
    p = (teacher / temperature).softmax(1)
    difference = torch.log_softmax(teacher / temperature, 1) - torch.log_softmax(
        student / temperature, 1
    )
    kl = alpha * temperature**2 * (p * difference).sum() / batch
    rows = torch.arange(len(labels), device=labels.device)
    difficulty = 1 - teacher.detach().softmax(1)[rows, labels]
    picked = torch.log_softmax(student, 1)[rows, labels]
    easy = difficulty < difficulty_threshold
    return kl, -picked[easy].sum() / batch, difficulty


def units(sample: Sample) -> tuple[Any, ...]:
    """The factors of the losses."""
    alpha = sample.options.get("alpha", 20.0)
    temperature = sample.options.get("temperature", 20.0)
    slope = alpha * max(temperature, 1.0)
    return alpha * temperature**2, 5.0, 1.0, slope, slope


def nearest(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> Any:
    """What a trainer writes, without the choice by difficulty."""
    functional = torch.nn.functional

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        p = functional.log_softmax(teacher / 20, 1)
        q = functional.log_softmax(student / 20, 1)
        kl = functional.kl_div(q, p, reduction="batchmean", log_target=True)
        return kl, functional.cross_entropy(student, labels)

    return losses


CASE = OpCase(
    name="distillation_loss",
    call=call,
    inputs=inputs,
    oracle=oracle,
    values=(KL, Tolerance(atol=1e-6, rtol=1e-6), Tolerance(atol=1e-6)),
    gradients=(GRADIENT, GRADIENT),
    units=units,
    bytes_moved=lambda sample: nbytes(*sample.tensors[:2]),
    nearest=Nearest("kl_div + cross_entropy", nearest, lambda n, *x: n.distillation_loss(*x)),
    maps=False,
    cast=(0, 1),
    laid_out=(0, 1),
)
