"""Every op below torch.compile, torch.export and torch.func.vmap."""

import pytest
import torch

from synq_fast import ops
from synq_fast.testing import CASES, OpCase
from synq_fast.testing.conformance import run, same_bits

every_op = pytest.mark.parametrize("name", CASES)


def function_of(case: OpCase, options):
    return lambda *tensors: case.call(ops, *tensors, **options)


def batches(case: OpCase) -> list[tuple[torch.Tensor, ...]]:
    """The typical tensors, and twice as many in a batch."""
    tensors = case.typical().tensors
    batched = [x.ndim > 1 or (x.ndim == 1 and len(x) == len(tensors[0])) for x in tensors]
    twice = [torch.cat([x, x]) if b else x for x, b in zip(tensors, batched, strict=True)]
    return [tensors, tuple(twice)]


def assert_same(actual, expected, exact: bool) -> None:
    for one, other in zip(
        [*actual.values, *actual.gradients.get("all results", ())],
        [*expected.values, *expected.gradients.get("all results", ())],
        strict=True,
    ):
        if exact:
            assert same_bits(one, other) == ""
        else:
            # The compiler fuses and reorders sums.
            scale = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(one, other, atol=2e-6 * scale, rtol=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
@every_op
def test_compiles_in_one_graph(name: str, backend: str) -> None:
    """For one size first, then for any: the second batch is compiled with symbolic sizes."""
    case = CASES[name]
    function = function_of(case, case.typical().options)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with ops.backend(backend):
        for tensors in batches(case)[: 2 if backend == "auto" else 1]:
            expected = run(function, tensors, {}, case.differentiable, alone=False)
            actual = run(compiled, tensors, {}, case.differentiable, alone=False)
            assert_same(actual, expected, backend == "auto" and case.exact)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor() -> None:
    """The exact ops in one graph, through the default compiler."""
    exact = {name: (case.call, case.typical()) for name, case in CASES.items() if case.exact}
    tensors = {name: sample.tensors for name, (_, sample) in exact.items()}

    def function(tensors):
        return {
            name: call(ops, *tensors[name], **sample.options)
            for name, (call, sample) in exact.items()
        }

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)(tensors)
    for name, expected in function(tensors).items():
        pairs = [(compiled[name], expected)]
        if isinstance(expected, tuple):
            pairs = zip(compiled[name], expected, strict=True)
        for mine, theirs in pairs:
            assert same_bits(mine, theirs) == "", name


@pytest.mark.compile
@every_op
def test_export(name: str) -> None:
    """A program for any batch, with the registered op as one node."""
    case = CASES[name]
    options, (tensors, twice) = case.typical().options, batches(case)

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.call(ops, *tensors, **options)

    batches_of = {len(x): torch.export.Dim(f"batch{len(x)}") for x in tensors if x.ndim}
    shapes = tuple(
        {0: batches_of[len(one)]} if one.shape != two.shape else None
        for one, two in zip(tensors, twice, strict=True)
    )
    program = torch.export.export(Module(), tensors, dynamic_shapes=(shapes,))
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    ours = [node for node in nodes if getattr(node, "namespace", "") == "synq_fast"]
    assert ours or name == "read_range" or ops.available_backends()["cpu"] is not None
    for inputs in (tensors, twice):
        actual = run(program.module(), inputs, {}, 0)
        expected = run(Module(), inputs, {}, 0)
        for mine, theirs in zip(actual.values, expected.values, strict=True):
            assert same_bits(mine, theirs) == ""


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@every_op
def test_vmap(name: str, backend: str) -> None:
    """One call over a batch of inputs is the calls one by one, where PyTorch can do it at all."""
    case = CASES[name]
    if not case.maps:
        pytest.skip(f"{name} writes in place, or looks at values")
    sample = case.typical()
    function = function_of(case, sample.options)
    x = sample.tensors[0]
    first = torch.stack([x, x.flip(0), x * 0.5 if x.is_floating_point() else x // 2])
    with ops.backend(backend):
        mapped = torch.func.vmap(lambda x: function(x, *sample.tensors[1:]))(first)
        mapped = mapped if isinstance(mapped, tuple) else (mapped,)
        for i, x in enumerate(first):
            single = run(function, (x, *sample.tensors[1:]), {}, 0).values
            for mine, theirs in zip(mapped, single, strict=True):
                torch.testing.assert_close(mine[i], theirs, atol=2e-6, rtol=1e-5)
