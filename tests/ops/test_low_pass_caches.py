"""The caches of the low-pass op, and what it checks for itself."""

import threading

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.reference import _filter_mask
from tests.ops.backends import require
from tests.ops.test_low_pass import KINDS
from tests.tolerances import assert_close

IMAGE = torch.randn(2, 3, 5, 6)


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
