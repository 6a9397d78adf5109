"""The table of ops and their nearest ATen ops."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bench_call_overhead import NEIGHBOURS, registered_call
from synq_fast import ops
from synq_fast.ops import _installation as info

FAKE_QUANTIZE = next(entry for entry in NEIGHBOURS if entry.op == "fake_quantize")
# Nothing in ATen takes such arguments or gives such results, or they call an op of the table.
ALONE = {
    "search_range",
    "patch_similarity_entropy",
    "grad_cam_plus_plus",
    "layer_cam",
    "hires_cam",
    "bn_statistics_losses",
}


def test_the_registered_call_is_what_the_public_function_makes():
    inputs = FAKE_QUANTIZE.inputs()
    overload, arguments, options = registered_call(FAKE_QUANTIZE, inputs)
    assert overload.overloadpacket == torch.ops.synq_fast.fake_quantize
    assert arguments[0] is inputs[0]
    assert torch.equal(overload(*arguments, **options), FAKE_QUANTIZE.public(*inputs))


def test_an_op_on_the_reference_has_no_registered_call():
    with ops.backend("reference"), pytest.raises(LookupError, match="reference"):
        registered_call(FAKE_QUANTIZE, FAKE_QUANTIZE.inputs())


def test_an_op_that_is_not_registered_is_named():
    entry = next(entry for entry in NEIGHBOURS if entry.op == "low_pass")
    missing = type(entry)(**{**vars(entry), "op": "no_such_op"})
    with pytest.raises(LookupError, match="no_such_op is not a registered op"):
        registered_call(missing, entry.inputs())


def test_every_op_with_kernels_has_a_neighbour():
    assert set(info.report().kernels) - ALONE <= {entry.op for entry in NEIGHBOURS}


@pytest.mark.parametrize("entry", NEIGHBOURS, ids=lambda entry: entry.op)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_can_be_called(entry):
    inputs = entry.inputs()
    for x in inputs[: entry.differentiable]:
        x.requires_grad_()
    entry.aten(*inputs)
    if hasattr(ops, entry.op):
        entry.public(*inputs)
