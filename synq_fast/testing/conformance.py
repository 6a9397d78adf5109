"""Runs an op on the samples of its case and says where it is wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from synq_fast import reference
from synq_fast.testing.case import EXACT, OpCase, Sample, Tolerance
from synq_fast.testing.layouts import DENSE, LAYOUTS, OTHER_VALUES, converted, lay_out

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_TYPES = DTYPES[1:]
Known = dict[int, dict[str, "Results"]]
"""What must come out of each sample of a case, by its place and the way it was computed."""


class Results(NamedTuple):
    """What a call gives.

    Attributes:
        values: The results, detached.
        gradients: Of the results together and, where there are several, of each alone: the
            gradients of the leading tensors, None for one that the result does not depend on.
        leaves: The tensors of the call.
    """

    values: tuple[torch.Tensor, ...]
    gradients: dict[str, tuple[torch.Tensor | None, ...]]
    leaves: tuple[torch.Tensor, ...]


def weights(y: torch.Tensor, offset: int) -> torch.Tensor:
    """Returns an incoming gradient of numbers that every type has, each place its own."""
    steps = torch.arange(y.numel(), dtype=torch.int64, device=y.device) * 37 + 13 * offset + 11
    values = ((steps % 127 - 63).to(y.dtype) / 32).view(y.shape)
    return torch.empty_like(y).copy_(values)


def run(
    function: Callable[..., Any],
    tensors: Iterable[torch.Tensor],
    options: Mapping[str, Any],
    differentiable: int,
    *,
    alone: bool = True,
) -> Results:
    """Calls a function of tensors and differentiates the results together, and each `alone`."""
    leaves = tuple(x.detach().requires_grad_(i < differentiable) for i, x in enumerate(tensors))
    given = function(*leaves, **options)
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    trained = [i for i, y in enumerate(values) if y.requires_grad]
    subsets = {"all results": trained} if trained else {}
    if len(trained) > 1 and alone:
        subsets |= {f"result {i}": [i] for i in trained}
    gradients: dict[str, tuple[torch.Tensor | None, ...]] = {
        name: torch.autograd.grad(
            [values[i] for i in subset],
            leaves[:differentiable],
            [weights(values[i], i) for i in subset],
            retain_graph=len(subsets) > 1,
            allow_unused=True,
        )
        for name, subset in subsets.items()
    }
    return Results(tuple(y.detach() for y in values), gradients, leaves)


def moved(value: Any, device: torch.device | str, wide: bool = False) -> Any:
    """Returns tensors on a device, in float64 if asked for, and anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    dtype = torch.float64 if wide and value.is_floating_point() else value.dtype
    return converted(value, dtype, device)


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> str:
    """Says how the bits differ; one NaN is as good as another."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return (
            f"{actual.dtype} {tuple(actual.shape)} instead of "
            f"{expected.dtype} {tuple(expected.shape)}"
        )
    same = actual == expected
    if actual.is_floating_point():
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
        bits = [x.contiguous().view(integer) for x in (actual, expected)]
        same = (bits[0] == bits[1]) | (actual.isnan() & expected.isnan())
    if bool(same.all()):
        return ""
    first = actual[~same][:3].tolist(), expected[~same][:3].tolist()
    return f"{int((~same).sum())} of {same.numel()} differ, first {first[0]} instead of {first[1]}"


def close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    tolerance: Tolerance,
    unit: Any = 1.0,
    *,
    nan_stays: bool = True,
) -> str:
    """Says how far a result is off the float64 one; what is not finite there is not here."""
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    mine, theirs = actual.double(), expected.double()
    finite = theirs.isfinite()
    if bool((mine.isfinite() & ~finite).any()):
        return f"{int((mine.isfinite() & ~finite).sum())} are finite that must not be"
    if nan_stays and bool((~mine.isnan() & theirs.isnan()).any()):
        return "no NaN where there must be one"
    size = torch.where(finite, theirs.abs(), 0.0)
    error = torch.where(finite, (mine - theirs).abs(), 0.0)
    rounding = 0.0
    if actual.dtype in HALF_TYPES:
        rounding = torch.finfo(actual.dtype).eps
    bound = tolerance.atol * torch.as_tensor(unit, dtype=torch.float64, device=size.device)
    bound = bound + (tolerance.rtol + rounding) * size
    if size.numel():
        bound = bound + tolerance.of_largest * size.max()
    if actual.dtype == torch.float16:
        bound = bound + 6e-8  # its least value
    bound = bound.expand_as(size)
    if tolerance.of_norm:
        limit = (tolerance.of_norm + rounding) * size.norm() + bound.norm() * (tolerance.atol > 0)
        if not error.norm() <= limit:
            return f"off by {float(error.norm()):.3g} in norm, {float(limit):.3g} allowed"
    elementwise = not tolerance.of_norm or tolerance.of_largest
    if elementwise and not bool((error <= bound).all()):
        worst = int((error - bound).nan_to_num(torch.inf).argmax())
        values = [float(x.reshape(-1)[worst]) for x in (mine, theirs, bound)]
        count = int((~(error <= bound)).sum())
        return (
            f"{count} of {size.numel()} differ, {values[0]:.9g} instead of {values[1]:.9g}, "
            f"allowed {values[2]:.3g}"
        )
    return ""


@dataclass(frozen=True)
class Check:
    """One sample in one type and one layout.

    Attributes:
        case: The op.
        sample: The input, in that type and layout, on the CPU.
        layout: A name of `LAYOUTS`.
        definition: Whether it is the reference that is checked: by the oracle alone.
        known: What must come out, by the way it was computed; other layouts of the sample share it.
    """

    case: OpCase
    sample: Sample
    layout: str
    definition: bool = False
    known: dict[str, Results] = field(default_factory=dict)

    def faults(self, namespace: Any, device: torch.device | str = "cpu") -> list[str]:
        """Runs the op and returns what is wrong, an empty list where nothing is."""
        case, sample = self.case, self.sample
        tensors = tuple(moved(x, device) for x in sample.tensors)
        options = {key: moved(value, device) for key, value in sample.options.items()}
        versions = [x._version for x in tensors]
        actual = run(
            lambda *x, **o: case.call(namespace, *x, **o), tensors, options, case.differentiable
        )
        found = [] if [x._version for x in tensors] == versions else ["an input was written to"]
        if not self.definition:
            found += self._misplaced(actual)
        here = actual._replace(
            values=tuple(y.cpu() for y in actual.values),
            gradients={
                name: tuple(None if g is None else g.cpu() for g in gradients)
                for name, gradients in actual.gradients.items()
            },
        )
        return [f"{self}: {fault}" for fault in found + list(self._differences(here))]

    def __str__(self) -> str:
        """Returns what a reader needs to find the sample."""
        x = self.sample.tensors[0]
        layout = "" if self.layout == "given" else f", {self.layout}"
        return f"{self.sample.reason} [{tuple(x.shape)} {x.dtype}{layout}, {self.sample.options}]"

    def _misplaced(self, actual: Results) -> Iterator[str]:
        """Yields results that do not lie as their tensors do, where those lie without gaps."""
        x = actual.leaves[0]
        if self.layout not in DENSE or torch.empty_like(x).stride() != x.stride():
            return
        # Strides of dimensions without a second element say nothing.
        images = x.is_contiguous() or self.layout == "channels_last"
        keeps = self.case.keeps_layout or (self.case.same_type and images)
        if keeps and min(x.shape, default=0) > 1:
            wanted = torch.empty_like(x).stride()
            if actual.values[0].stride() != wanted:
                yield f"strides {actual.values[0].stride()} instead of {wanted}"
        for name, gradients in actual.gradients.items():
            for leaf, gradient in zip(actual.leaves, gradients, strict=False):
                plain = leaf.is_contiguous() or self.layout == "channels_last"
                if gradient is None or min(leaf.shape, default=0) < 2:
                    continue
                if not plain and not (self.case.keeps_layout and leaf is x):
                    continue
                if leaf.stride() != x.stride():
                    continue
                wanted = torch.empty_like(leaf).stride()
                if gradient.dtype != leaf.dtype or gradient.stride() != wanted:
                    yield f"gradient of {name}: {gradient.dtype}, strides {gradient.stride()}"

    def _differences(self, actual: Results) -> Iterator[str]:
        case, sample = self.case, self.sample
        if case.judge is not None and not sample.special:
            fault = case.judge(sample, actual.values)
            if fault:
                yield fault
            return
        by_bits = [tolerance is EXACT for tolerance in (*case.values, *case.gradients)]
        # The definition is compared with its own float32 where the oracle says nothing.
        bits = any(by_bits) and (sample.special or not self.definition)
        exact = self._once("in float32", lambda: self._reference(wide=False)) if bits else None
        # Where bits alone count, the oracle judges the definition and that judges the kernels.
        judged = all(by_bits) and not self.definition
        wide = exact if judged and exact is not None else self._once("oracle", self._oracle)
        exact = exact or wide
        units = case.units(sample) if case.units is not None else ()
        units = (*units, *[1.0] * (len(case.values) + len(case.gradients) - len(units)))
        pairs: list[tuple[str, Any, Any, Any, Tolerance, Any]] = [
            (f"result {i}", *row, case.values[i], units[i])
            for i, row in enumerate(zip(actual.values, exact.values, wide.values, strict=True))
        ]
        if actual.gradients.keys() != wide.gradients.keys():
            yield f"gradients of {list(actual.gradients)} instead of {list(wide.gradients)}"
            return
        for name, gradients in actual.gradients.items():
            rows = zip(gradients, exact.gradients[name], wide.gradients[name], strict=True)
            pairs += [
                (f"gradient {i} of {name}", *row, tolerance, unit)
                for i, (row, tolerance, unit) in enumerate(
                    zip(rows, case.gradients, units[len(case.values) :], strict=False)
                )
            ]
        for name, mine, theirs, exactly, tolerance, unit in pairs:
            is_value = name.startswith("result")
            fault = self._difference(mine, theirs, exactly, tolerance, unit, is_value)
            if fault:
                yield f"{name}: {fault}"

    def _difference(
        self,
        mine: torch.Tensor | None,
        theirs: torch.Tensor | None,
        wide: torch.Tensor | None,
        tolerance: Tolerance,
        unit: Any,
        is_value: bool,
    ) -> str:
        if mine is None or theirs is None or wide is None:
            # No gradient is as good as one of zeros.
            given = [x for x in (mine, wide) if x is not None]
            return f"{mine} instead of {wide}" if any(bool(x.any()) for x in given) else ""
        if tolerance is EXACT:
            if not self.definition or self.sample.special:
                return same_bits(mine, theirs)
            # Zeros of either sign are one number to the oracle.
            return same_bits(mine + 0.0, wide.to(mine.dtype) + 0.0) if mine.numel() else ""
        if self.case.exact and self.sample.special:
            # Sums of codes that are no numbers: float64 might decide other codes.
            alike = mine.isnan() == theirs.isnan()
            return "" if bool(alike.all()) else "NaN in other places"
        has_nan = any(x.is_floating_point() and x.isnan().any() for x in self.sample.tensors)
        return close(mine, wide, tolerance, unit, nan_stays=is_value and bool(has_nan))

    def _once(self, way: str, compute: Callable[[], Results]) -> Results:
        if way not in self.known:
            self.known[way] = compute()
        return self.known[way]

    def _reference(self, wide: bool) -> Results:
        case, sample = self.case, self.sample
        tensors = tuple(moved(x, "cpu", wide) for x in sample.tensors)
        options = {key: moved(value, "cpu", wide) for key, value in sample.options.items()}
        return run(
            lambda *x, **o: case.call(reference, *x, **o), tensors, options, case.differentiable
        )

    def _oracle(self) -> Results:
        case, sample = self.case, self.sample
        if case.exact and sample.special:
            return self._reference(wide=False)
        if case.oracle is None or sample.special:
            return self._reference(wide=True)
        tensors = tuple(moved(x, "cpu", wide=True) for x in sample.tensors)
        return run(case.oracle, tensors, sample.options, case.differentiable)


def checks(
    case: OpCase,
    dtype: torch.dtype = torch.float32,
    *,
    layouts: Iterable[str] = tuple(LAYOUTS),
    wanted: Callable[[Sample], bool] = lambda sample: True,
    definition: bool = False,
    known: Known | None = None,
) -> Iterator[Check]:
    """Yields the samples of a case in one type, those that are tested so in every layout.

    Args:
        case: The op.
        dtype: What to cast the tensors to that `OpCase.cast` names.
        layouts: Names of `LAYOUTS`.
        wanted: Chooses among the samples.
        definition: Whether it is the reference that is checked.
        known: What other backends were compared with, of the same case and type; gets the rest.
    """
    known = {} if known is None else known
    for place, sample in enumerate(case.inputs()):
        if not wanted(sample) or (definition and sample.beyond_reference):
            continue
        cast = tuple(
            converted(x, dtype) if i in case.cast and x.is_floating_point() else x
            for i, x in enumerate(sample.tensors)
        )
        # Large results are not worth their memory.
        expected = {} if sample.large else known.setdefault(place, {})
        for layout in layouts if sample.every_layout else ("given",):
            tensors = lay_out(cast, layout, case.laid_out)
            if tensors is not None:
                alone = case.by_place or layout in OTHER_VALUES
                shared = {} if alone else expected
                yield Check(case, sample._replace(tensors=tensors), layout, definition, shared)


def check(
    case: OpCase,
    namespace: Any,
    *,
    device: torch.device | str = "cpu",
    dtypes: Iterable[torch.dtype] = DTYPES,
    wanted: Callable[[Sample], bool] = lambda sample: True,
) -> list[str]:
    """Runs an op on every sample of its case, forward and backward.

    Args:
        case: What the op is held to.
        namespace: Holds the op under the case's name.
        device: Where the tensors are.
        dtypes: The types to test.
        wanted: Chooses among the samples.

    Returns:
        What is wrong, a sentence each.
    """
    found: list[str] = []
    for dtype in dtypes:
        for one in checks(case, dtype, wanted=wanted):
            found += one.faults(namespace, device)
    return found
