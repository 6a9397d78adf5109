"""The registered range ops inside PyTorch's own machinery, and on every instruction set."""

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import assert_same
from tests.ops.processes import results

IMAGE = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
INPUTS = {
    "image": IMAGE,
    "half": IMAGE.half(),
    "strided": torch.randn(4, 6)[:, ::2],
    "one": torch.tensor(2.0),
}


def state():
    return torch.zeros(()), torch.ones(1), torch.zeros((), dtype=torch.int64)


@pytest.mark.compile
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(name, requires_grad):
    x = INPUTS[name].detach().clone().requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.synq_fast.update_range.default, (x, *state(), 0.9))
    torch.library.opcheck(torch.ops.synq_fast.search_range.default, (x, 4, 6, 2.4))


def calibrate(x, low, high, step):
    ops.update_range(x, low, high, step)
    y = x * 2
    ops.update_range(y, low, high, step, 0.5)
    first = ops.read_range(low, high, step)
    return (*first, *ops.search_range(y, 3, candidates=9)), (y - first[0]).square().sum()


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(calibrate, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for x in (IMAGE, torch.cat([IMAGE, IMAGE])):
        results = []
        for call in (calibrate, compiled):
            leaf, parts = x.detach().clone().requires_grad_(), state()
            with ops.backend(backend):
                found, loss = call(leaf, *parts)
            loss.backward()
            results.append((*found, *parts, leaf.grad))
        for actual, expected in zip(*results, strict=True):
            assert_same(actual, expected)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor():
    torch.compiler.reset()
    compiled = torch.compile(calibrate, fullgraph=True)
    parts, expected = state(), state()
    found = compiled(IMAGE, *parts)[0]
    for actual, value in zip(
        (*found, *parts), (*calibrate(IMAGE, *expected)[0], *expected), strict=True
    ):
        assert_same(actual, value)


@pytest.mark.compile
def test_export():
    class Observer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in zip(("low", "high", "step"), state(), strict=True):
                self.register_buffer(name, value)

        def forward(self, x):
            ops.update_range(x, self.low, self.high, self.step)
            return ops.search_range(x, 4, candidates=5)

    program = torch.export.export(
        Observer(), (IMAGE,), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    exported, plain = program.module(), Observer()
    x = torch.randn(7, 3, 5, 5)
    for actual, expected in zip(exported(x), plain(x), strict=True):
        assert_same(actual, expected)
    for name, expected in plain.named_buffers():
        assert_same(exported.get_buffer(name), expected)


def test_ranges_are_constants_to_autograd_and_changes_are_seen():
    x = torch.randn(3, 4, requires_grad=True)
    low, high, step = state()
    versions = [value._version for value in (low, high, step)]
    torch.ops.synq_fast.update_range(x, low, high, step, 0.9)
    assert [value._version for value in (low, high, step)] == [v + 1 for v in versions]
    assert not low.requires_grad
    assert not any(v.requires_grad for v in torch.ops.synq_fast.search_range(x, 4, 5, 2.4))
    scale = torch.ones((), requires_grad=True)
    product = scale * low
    ops.update_range(x, low, high, step)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_input_s_type(dtype):
    parts, expected = state(), state()
    with torch.autocast("cpu", dtype=dtype):
        torch.ops.synq_fast.update_range(IMAGE, *parts, 0.9)
        found = torch.ops.synq_fast.search_range(IMAGE, 4, 5, 2.4)
    torch.ops.synq_fast.update_range(IMAGE, *expected, 0.9)
    for actual, value in zip(
        (*parts, *found),
        (*expected, *torch.ops.synq_fast.search_range(IMAGE, 4, 5, 2.4)),
        strict=True,
    ):
        assert_same(actual, value)


def test_inference_mode():
    x = torch.randn(50)
    with torch.inference_mode():
        parts = state()
        ops.update_range(x, *parts)
        found = ops.search_range(x, 4)
    expected = state()
    ops.update_range(x, *expected)
    for actual, value in zip((*parts, *found), (*expected, *ops.search_range(x, 4)), strict=True):
        assert_same(actual.clone(), value)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("update_range", (torch.ones(2).double(), *state(), 0.9), TypeError, "x (is not|must be)"),
        ("update_range", (torch.ones(0), *state(), 0.9), ValueError, "x is "),
        (
            "update_range",
            (torch.ones(2), torch.zeros(2), *state()[1:], 0.9),
            ValueError,
            "state_min (is not|must have)",
        ),
        (
            "update_range",
            (torch.ones(2), *state()[:2], torch.zeros(()), 0.9),
            TypeError,
            "step (is not|must be)",
        ),
        ("update_range", (torch.ones(2), *state(), 1.0), ValueError, "beta (is not|must be)"),
        ("search_range", (torch.ones(2).int(), 4, 5, 2.4), TypeError, "x (is not|must be)"),
        ("search_range", (torch.ones(0), 4, 5, 2.4), ValueError, "x is "),
        ("search_range", (torch.ones(2), 1, 5, 2.4), ValueError, "bits (is not|must be)"),
        ("search_range", (torch.ones(2), 4, 101, 2.4), ValueError, "candidates (is not|must be)"),
        ("search_range", (torch.ones(2), 4, 5, 0.0), ValueError, "norm (is not|must be)"),
        ("search_range", (torch.ones(2), 4, 5, 16.5), ValueError, "norm (is not|must be)"),
    ],
)
def test_the_registered_ops_check_for_themselves(name, arguments, error, message):
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(error, match=message):
        getattr(torch.ops.synq_fast, name)(*arguments)
    for value, kept in zip(arguments, before, strict=True):
        assert torch.equal(value, kept) if isinstance(value, torch.Tensor) else value == kept


PROGRAM = """
import torch
from synq_fast import ops
from tests.ops.test_range_registration import IMAGE, state

torch.manual_seed(3)
x, parts = torch.randn(4, 5, requires_grad=True), state()
ops.update_range(x, *parts)
torch.ops.synq_fast.update_range(x, *parts, 0.5)
print(ops.available_backends()["cpu"])
print([value.item() for value in (*parts, *torch.ops.synq_fast.search_range(x, 4, 9, 2.4))])
"""

CHECKS = """
torch.library.opcheck(torch.ops.synq_fast.update_range.default, (x, *state(), 0.9))
torch.library.opcheck(torch.ops.synq_fast.search_range.default, (x, 4, 6, 2.4))
"""


@pytest.mark.slow
def test_without_the_extension():
    """The same program with and without native kernels: the reference takes over."""
    bare, native = results(PROGRAM, CHECKS)
    assert bare == native
