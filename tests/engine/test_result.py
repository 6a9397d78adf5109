"""Results in other types, copied and pickled."""

import copy
import io

import pytest
import torch

from synq_fast.quant import ActivationQuantizer, observing
from tests.tiny import equal_states, run, tiny_images


@pytest.fixture(scope="module")
def result():
    return run(overrides={"finetune.steps": 1, "synthesis.steps": 1})


def quantizers(model):
    return [m for m in model.modules() if isinstance(m, ActivationQuantizer)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_ranges_stay_float32_in_every_type(result, dtype):
    model = copy.deepcopy(result.model).to(dtype)
    for ours, theirs in zip(quantizers(model), quantizers(result.model), strict=True):
        assert ours.range_min.dtype == ours.range_max.dtype == torch.float32
        assert torch.equal(ours.range_max, theirs.range_max)
    images = tiny_images(8)
    expected, found = result.model(images), model(images.to(dtype))
    assert found.dtype == dtype
    # Values at the border of two levels go to either, so a few logits move by a step.
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert equal_states(copy.deepcopy(result.model).double().float(), result.model)


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_a_learned_range_and_its_observer_stay_float32(change):
    quantizer = ActivationQuantizer(4, policy="ema", learn=True)
    with observing(quantizer):
        quantizer(torch.tensor([-1.0, 1 / 3]))
        getattr(quantizer, change)()
        assert quantizer.observer.low.dtype == torch.float32
        assert quantizer.observer.batches.dtype == torch.int64
    assert quantizer.gain.dtype == quantizer.range_max.dtype == torch.float32
    assert quantizer.range_max == torch.tensor(1 / 3)
    x = torch.randn(5, dtype=getattr(torch, change))
    assert quantizer(x).dtype == x.dtype
    assert quantizer.to("meta").range_max.is_meta


def test_a_copy_is_the_same_and_apart(result):
    copied = copy.deepcopy(result)
    assert equal_states(copied.model, result.model)
    assert torch.equal(copied.model(tiny_images(4)), result.model(tiny_images(4)))
    with torch.no_grad():
        copied.model.conv1.weight.zero_()
    assert not equal_states(copied.model, result.model)


@pytest.mark.parametrize("whole", [True, False])
def test_torch_save_reads_back(result, whole):
    file = io.BytesIO()
    torch.save(result if whole else result.model, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    model = read.model if whole else read
    assert torch.equal(model(tiny_images(4)), result.model(tiny_images(4)))
    assert equal_states(model, result.model)
