"""The ops that are measured beside their nearest ATen op."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.bench_call_overhead import NEIGHBOURS, inputs_of, public_call, registered_call
from synq_fast import ops
from synq_fast.ops import _installation as info
from synq_fast.testing import CASES

CASE = CASES["fake_quantize"]
# Nothing in ATen takes such arguments or gives such results, or they call an op of the table.
ALONE = {
    "search_range",
    "soft_round",
    "patch_similarity_entropy",
    "grad_cam_plus_plus",
    "layer_cam",
    "hires_cam",
    "bn_statistics_losses",
}


def test_the_registered_call_is_what_the_public_function_makes():
    inputs = inputs_of(CASE)
    overload, arguments, options = registered_call(CASE, inputs)
    assert overload.overloadpacket == torch.ops.synq_fast.fake_quantize
    assert arguments[0] is inputs[0]
    assert torch.equal(overload(*arguments, **options), public_call(CASE, inputs)())


def test_an_op_on_the_reference_has_no_registered_call():
    with ops.backend("reference"), pytest.raises(LookupError, match="reference"):
        registered_call(CASE, inputs_of(CASE))


def test_an_op_that_is_not_registered_is_named():
    missing = replace(CASE, name="no_such_op")
    with pytest.raises(LookupError, match="no_such_op is not a registered op"):
        registered_call(missing, inputs_of(CASE))


def test_every_op_with_kernels_has_a_neighbour():
    assert set(info.report().kernels) - ALONE <= {case.name for case in NEIGHBOURS}
