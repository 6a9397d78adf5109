"""The registered ops behind the public functions: the one place that knows where they are kept."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synq_fast import ops
from synq_fast.ops._registry import OPS, reference_kernel
from synq_fast.testing import OpCase, Sample
from synq_fast.testing.conformance import run, weights

NAMES = sorted(OPS)
# Of more gradients than these, the first, one amid and the last are asked for alone.
MANY = 6


def fallback(name: str) -> Callable[..., Any]:
    """What runs under a registered op's name where no kernel is built."""
    return reference_kernel(OPS[name])


class Call(NamedTuple):
    """One call of a registered op."""

    op: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.op._schema.name.removeprefix("synq_fast::")

    @property
    def trained(self) -> int:
        """How many tensors get a gradient."""
        leaves = tree_leaves(self.arguments)
        return sum(torch.is_tensor(leaf) and leaf.requires_grad for leaf in leaves)

    @property
    def kind(self) -> str:
        """The op and what it was given, tensors by their presence and type alone."""
        return str((self.op, [_kind(value) for value in self.arguments]))


def _kind(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.requires_grad
    return [_kind(part) for part in value] if isinstance(value, list | tuple) else value


class Recorder(TorchDispatchMode):
    """Keeps the calls of our registered ops, with the arguments as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "synq_fast":
            self.calls.append(Call(func, tuple(args), kwargs or {}))
        return func(*args, **(kwargs or {}))


def gradient_choices(case: OpCase, sample: Sample) -> Iterator[tuple[int, ...]]:
    """Which tensors get gradients: none, all, and each alone."""
    count = min(case.differentiable, len(sample.tensors))
    yield ()
    if count:
        yield tuple(range(count))
    if count > 1:
        yield from ((i,) for i in (range(count) if count <= MANY else (0, count // 2, count - 1)))


def results(
    case: OpCase, sample: Sample, trained: Sequence[int], namespace: Any = ops
) -> list[torch.Tensor]:
    """Values, and the gradients of the tensors that get one."""
    order = [*trained, *(i for i in range(len(sample.tensors)) if i not in trained)]
    back = sorted(range(len(order)), key=order.__getitem__)

    def call(*tensors: torch.Tensor, **options: Any) -> Any:
        return case.call(namespace, *(tensors[i] for i in back), **options)

    tensors = [sample.tensors[i] for i in order]
    found = run(call, tensors, sample.options, len(trained))
    gradients = found.gradients.get("all results", ())
    return [*found.values, *(g for g in gradients if g is not None)]


def calls(case: OpCase, sample: Sample) -> list[Call]:
    """Every kind of call of registered ops that a public function and its gradients make."""
    found: dict[str, Call] = {}
    for trained in gradient_choices(case, sample):
        with Recorder() as recorder:
            results(case, sample, trained)
        for call in recorder.calls:
            found.setdefault(call.kind, call)
    return list(found.values())


def fresh(call: Call) -> tuple:
    """The arguments as leaves; a backward op is not differentiated, whatever it was given."""
    backward = call.name.endswith("_backward")

    def leaf(value):
        if isinstance(value, list | tuple):
            return [leaf(part) for part in value]
        if not torch.is_tensor(value):
            return value
        return value.detach().requires_grad_(value.requires_grad and not backward)

    return tuple(leaf(value) for value in call.arguments)


def replayed(name: str, arguments: Sequence[Any]) -> list[torch.Tensor]:
    """Results of a direct call, and the gradients that it records."""
    given = getattr(torch.ops.synq_fast, name)(*arguments)
    flat = list(given) if isinstance(given, tuple | list) else [given]
    results = [x for y in flat if y is not None for x in (y if isinstance(y, list) else [y])]
    leaves = [x for y in arguments for x in (y if isinstance(y, list | tuple) else [y])]
    leaves = [x for x in leaves if torch.is_tensor(x) and x.requires_grad]
    trained = [y for y in results if y.requires_grad]
    gradients: Sequence[torch.Tensor | None] = ()
    if trained:
        weighted = [weights(y.detach(), i) for i, y in enumerate(trained)]
        gradients = torch.autograd.grad(trained, leaves, weighted, allow_unused=True)
    return [*(y.detach() for y in results), *(g for g in gradients if g is not None)]
