"""Proxies of torch.fx and subclasses of torch.Tensor as arguments of every op."""

import pickle
from typing import ClassVar

import pytest
import torch
from torch import fx

from synq_fast import ops
from synq_fast.testing import CASES
from tests.conformance.typical import function_of, results_of, tensors_of


def module_of(name):
    """A module whose forward is the call of the op, with one argument per tensor."""
    names = ", ".join(f"x{i}" for i in range(len(tensors_of(name))))
    scope = {"call": function_of(name), "ops": ops}
    exec(f"def forward(self, {names}): return call(ops, {names})", scope)
    return type("Module", (torch.nn.Module,), {"forward": scope["forward"]})()


@pytest.mark.parametrize("name", CASES)
def test_a_traced_module_records_one_node(name):
    tensors = tensors_of(name)
    traced = fx.symbolic_trace(module_of(name))
    op = getattr(ops, name)
    nodes = [node for node in traced.graph.nodes if node.target is op]
    assert [node.op for node in nodes] == ["call_function"]
    results = traced(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    for mine, theirs in zip(results, results_of(name, ops, tensors), strict=True):
        assert torch.equal(mine, theirs)


def test_a_traced_module_is_pickled_and_trained():
    traced = fx.symbolic_trace(module_of("fake_quantize"))
    x, *bounds = tensors_of("fake_quantize")
    read = pickle.loads(pickle.dumps(traced))
    gradients = []
    for module in (traced, read):
        leaf = x.clone().requires_grad_()
        module(leaf, *bounds).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    assert gradients[0].sum() > 0


def test_only_what_differs_from_the_default_is_recorded():
    traced = fx.symbolic_trace(lambda x: ops.fake_quantize(x, -1.0, 1.0, 4, axis=None, ste="clip"))
    (node,) = (node for node in traced.graph.nodes if node.op == "call_function")
    assert node.args[1:] == (-1.0, 1.0, 4)
    assert node.kwargs == {"ste": "clip"}


class Logged(torch.Tensor):
    calls: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", CASES)
def test_a_subclass_is_asked(name):
    tensors = tensors_of(name)
    Logged.calls.clear()
    first = tensors[0].clone().as_subclass(Logged)
    results = results_of(name, ops, [first, *tensors[1:]])
    assert getattr(ops, name) in Logged.calls
    for mine, theirs in zip(results, results_of(name, ops, tensors), strict=True):
        assert torch.equal(mine.as_subclass(torch.Tensor), theirs)
