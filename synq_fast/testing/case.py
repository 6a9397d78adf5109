"""What an op is, for everything that tests or measures it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class Sample(NamedTuple):
    """One input of an op.

    Attributes:
        reason: Why it is among the inputs.
        tensors: The tensors of the call, floating ones in float32; the suite brings those that
            `OpCase.cast` names to half types.
        options: What else the call takes.
        special: Whether it holds NaN or infinities, so that float64 is no oracle of exact ops.
        large: Whether it is too much for kernels that run one thread at a time.
        every_layout: Whether it is tested in every layout, else as it is given.
        beyond_reference: Whether the float32 sums of the reference are not good enough for it.
    """

    reason: str
    tensors: tuple[torch.Tensor, ...]
    options: Mapping[str, Any] = {}
    special: bool = False
    large: bool = False
    every_layout: bool = False
    beyond_reference: bool = False


class Tolerance(NamedTuple):
    """How far a result may be from the oracle: the sum of the terms, for every element.

    Attributes:
        atol: Times the unit that `OpCase.units` gives the result, 1 by default.
        rtol: Times the element.
        of_largest: Times the largest element.
        of_norm: Bounds the distance of the whole result instead, by this part of its norm.
    """

    atol: float = 0.0
    rtol: float = 0.0
    of_largest: float = 0.0
    of_norm: float = 0.0


EXACT = Tolerance()
"""The bits of the reference."""


@dataclass(frozen=True)
class Nearest:
    """The ATen op or ops nearest in arguments and results: what a call should cost.

    Attributes:
        name: What they are called.
        prepare: Takes the tensors of a sample and returns the call without arguments.
        ours: The call of our op that does as much, of a namespace and the tensors; None for the
            typical one.
    """

    name: str
    prepare: Callable[..., Callable[[], object]]
    ours: Callable[..., object] | None = None


@dataclass(frozen=True)
class OpCase:
    """How an op is called, on what, and what must come out.

    Attributes:
        name: The public function in `synq_fast.ops` and `synq_fast.reference`.
        call: Takes a namespace with that function, the tensors of a sample and its options.
        inputs: The samples; the first is small and typical.
        oracle: The results in float64, from the tensors in float64 and the options; None for the
            reference. Its gradients are those that every backend must have.
        values: The tolerance of each result.
        gradients: The tolerance of the gradient of each leading tensor that gets one.
        bytes_moved: Bytes that a call must read and write at least, without gradients.
        nearest: The nearest ATen op, or None where there is none.
        units: What absolute tolerances are multiples of, for each result and each gradient.
        cast: The tensors that half types are tested in.
        laid_out: The tensors that are tested in every layout.
        keeps_layout: Whether the first result lies in memory as the first tensor does.
        same_type: Whether the first result has the type of the first tensor, else float32.
        elementwise: Whether an element of the first result depends on its own element and on
            its channel's constants alone.
        quantizes: Whether it rounds to codes, which are decided in float32.
        by_place: Whether results depend on where elements lie in memory: draws are numbered so.
        second_derivative: Whether gradients can be differentiated again.
        variants: Options that lead a typical call to other kernels or other derivatives.
        gradcheck: Whether finite differences give the derivative: not where part of it is held
            constant.
        maps: Whether `torch.func.vmap` goes over the first tensor.
        saves: Elements that a typical call saves for its gradients, at most.
        registered: The op under `torch.ops.synq_fast` that it calls, where that is not its name.
        judge: Says what is wrong with results that need not be the oracle's; takes the sample
            and the results.
    """

    name: str
    call: Callable[..., Any]
    inputs: Callable[[], Iterable[Sample]]
    values: tuple[Tolerance, ...]
    bytes_moved: Callable[[Sample], int]
    gradients: tuple[Tolerance, ...] = ()
    oracle: Callable[..., Any] | None = None
    nearest: Nearest | None = None
    units: Callable[[Sample], tuple[Any, ...]] | None = None
    cast: tuple[int, ...] = (0,)
    laid_out: tuple[int, ...] = (0,)
    keeps_layout: bool = False
    same_type: bool = False
    elementwise: bool = False
    quantizes: bool = False
    by_place: bool = False
    second_derivative: bool = False
    variants: tuple[Mapping[str, Any], ...] = ()
    gradcheck: bool = True
    maps: bool = True
    saves: int | None = None
    registered: str | None = None
    judge: Callable[[Sample, tuple[torch.Tensor, ...]], str] | None = None

    @property
    def exact(self) -> bool:
        """Whether every backend must give the bits of the reference."""
        return self.judge is None and all(tolerance is EXACT for tolerance in self.values)

    @property
    def differentiable(self) -> int:
        """How many leading tensors get gradients."""
        return len(self.gradients)

    def typical(self) -> Sample:
        """Returns the first of the inputs, made anew."""
        return next(iter(self.inputs()))


def noise(*shape: int, seed: int = 0, scale: float = 1.0, mean: float = 0.0) -> torch.Tensor:
    """Returns normal float32 values on the CPU, the same every time."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return values * scale + mean


def uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Returns uniform float32 values on the CPU, the same every time."""
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return values * (high - low) + low


def constant(value: float) -> torch.Tensor:
    """Returns a float32 number on the CPU, whatever the defaults of the process are."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def nbytes(*tensors: torch.Tensor) -> int:
    """Returns what the tensors take in memory, each element once."""
    return sum(x.numel() * x.element_size() for x in tensors)
