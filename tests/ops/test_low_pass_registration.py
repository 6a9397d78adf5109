"""The low-pass op inside PyTorch's machinery, its caches and its instruction sets."""

import threading

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.reference import _filter_mask
from tests.ops.backends import require
from tests.ops.processes import NOT_BUILT, run
from tests.ops.test_low_pass import KINDS
from tests.tolerances import assert_close

IMAGE = torch.randn(2, 3, 5, 6)
CHANNELS_LAST = IMAGE.to(memory_format=torch.channels_last)


@pytest.mark.compile
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "x",
    [IMAGE[0], CHANNELS_LAST, IMAGE.transpose(-1, -2), IMAGE.bfloat16(), torch.empty(2, 0, 3)],
    ids=["contiguous", "channels_last", "transposed", "bfloat16", "empty"],
)
def test_opcheck(kind, x):
    for name in ("synq_fast", "synq_fast_reference"):
        op = getattr(torch.ops, name).low_pass.default
        for requires_grad in (False, True):
            leaf = x.detach().requires_grad_(requires_grad)
            torch.library.opcheck(op, (leaf, 2.0, kind, 3))


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiles_for_any_size(backend):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: ops.low_pass(x, 3.0), fullgraph=True, backend="aot_eager", dynamic=True
    )
    with ops.backend(backend):
        for size in ((6, 6), (9, 12), (15, 7)):
            x = torch.randn(2, *size, requires_grad=True)
            grad = torch.randn_like(x)
            y = compiled(x)
            assert torch.equal(y, ops.low_pass(x, 3.0))
            assert torch.equal(torch.autograd.grad(y, x, grad)[0], ops.low_pass(grad, 3.0))


@pytest.mark.compile
def test_export():
    class Module(torch.nn.Module):
        def forward(self, x):
            return ops.low_pass(ops.low_pass(x, 3.0), 2.0, kind="ideal")

    program = torch.export.export(Module(), (IMAGE,), dynamic_shapes=({0: torch.export.Dim("n")},))
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.synq_fast.low_pass.default in names
    x = torch.randn(7, 3, 5, 6)
    assert torch.equal(program.module()(x), Module()(x))


def test_autocast_keeps_the_type():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.low_pass(IMAGE, 2.0)
    assert y.dtype == torch.float32
    assert torch.equal(y, ops.low_pass(IMAGE, 2.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((IMAGE, 0.0, "gaussian", 2), ValueError, "cutoff (is not|must be)"),
        ((IMAGE, 1e-200, "gaussian", 2), ValueError, "cutoff (is not|must be)"),
        ((IMAGE, 1.0, "box", 2), ValueError, "kind (is not|must be)"),
        ((IMAGE, 1.0, "ideal", 0), ValueError, "order (is not|must be)"),
        ((IMAGE, 1.0, "ideal", 2, "fast"), ValueError, "method (is not|must be)"),
        ((IMAGE[0, 0, 0], 1.0, "ideal", 2), ValueError, "x (is not|must have)"),
        ((IMAGE.double(), 1.0, "ideal", 2), TypeError, "x (is not|must be)"),
    ],
)
def test_the_op_checks_its_arguments(arguments, error, message):
    require("cpu")
    with pytest.raises(error, match=message):
        torch.ops.synq_fast.low_pass(*arguments)


def test_float64_takes_the_reference():
    x = torch.randn(2, 12, 13, dtype=torch.float64)
    assert torch.equal(ops.low_pass(x, 3.0), reference.low_pass(x, 3.0))


def test_mask_is_built_once_and_the_cache_is_bounded(monkeypatch):
    built = []
    build = _filter_mask.build_mask
    monkeypatch.setattr(_filter_mask, "build_mask", lambda *a: built.append(a) or build(*a))
    _filter_mask._cache.clear()
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    with ops.backend("reference"):
        for _ in range(3):
            ops.low_pass(x, 2.0).sum().backward()
        assert len(built) == 1
        ops.low_pass(x, 2.0, kind="ideal")
        ops.low_pass(x.double(), 2.0)
        ops.low_pass(x[..., :5], 2.0)
        assert len(built) == 4
        for i in range(100):
            ops.low_pass(x, 3.0 + i)
    assert len(_filter_mask._cache) == _filter_mask._CACHE_SIZE


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_inference_mode_built_serves_training(backend):
    require(backend)
    _filter_mask._cache.clear()
    with ops.backend(backend):
        with torch.inference_mode():
            ops.low_pass(torch.randn(1, 7, 7), 2.25)
            ops.low_pass(torch.randn(1, 7, 1700), 2.25)
        for width in (7, 1700):
            x = torch.randn(1, 7, width, requires_grad=True)
            ops.low_pass(x, 2.25).sum().backward()
            assert_close(x.grad, torch.ones(1, 7, width), "low_pass")


def test_threads_share_the_caches():
    """More settings than a cache holds, asked for by several threads at once."""
    x = torch.randn(3, 12, 20)
    cutoffs = [1.0 + i / 4 for i in range(40)]
    expected = {
        (kind, cutoff): reference.low_pass(x, cutoff, kind=kind)
        for kind in KINDS
        for cutoff in cutoffs
    }
    failures = []

    def work(offset):
        for i in range(2 * len(cutoffs)):
            for kind in KINDS:
                cutoff = cutoffs[(i * 7 + offset) % len(cutoffs)]
                try:
                    y = ops.low_pass(x, cutoff, kind=kind)
                    assert_close(y, expected[kind, cutoff], "low_pass")
                except Exception as error:
                    failures.append(error)

    workers = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


WITHOUT_EXTENSION = """
import torch
from synq_fast import ops, reference

assert ops.available_backends()["cpu"] == "no compiler"
for memory_format in (torch.contiguous_format, torch.channels_last):
    x = torch.randn(2, 3, 7, 8).to(memory_format=memory_format).requires_grad_()
    for kind in ("gaussian", "ideal"):
        y = torch.ops.synq_fast.low_pass(x, 2.0, kind, 2)
        assert y.is_contiguous(memory_format=memory_format)
        assert torch.equal(y, reference.low_pass(x, 2.0, kind=kind))
        (gradient,) = torch.autograd.grad(y, x, y.detach())
        assert torch.equal(gradient, reference.low_pass(y.detach(), 2.0, kind=kind))
        torch.library.opcheck(torch.ops.synq_fast.low_pass.default, (x, 2.0, kind, 2))
"""


def test_without_the_extension():
    result = run(NOT_BUILT + WITHOUT_EXTENSION)
    assert result.returncode == 0, result.stderr
