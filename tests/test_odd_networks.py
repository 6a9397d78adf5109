"""From the user's module to a saved model and back, for networks that once went wrong."""

import copy

import pytest
import torch

import synq_fast
from tests.networks import network
from tests.odd_networks.net import SHAPE
from tests.tiny import TINY_OVERRIDES

STEPS = {
    **TINY_OVERRIDES,
    "synthesis.images": 4,
    "synthesis.batch_size": 4,
    "synthesis.steps": 1,
    "finetune.steps": 2,
    "finetune.learning_rate": 1e-7,
}


def quantized(name: str, **options):
    return synq_fast.quantize(
        network(name), "synq-digits", "w8a8", SHAPE, overrides=STEPS, progress=False, **options
    )


@pytest.mark.parametrize(
    "name",
    ["NormalisesInPlace", "Flag", "AddsPooled", "AddsParameter", "AddsWithAlpha", "WritesToHalves",
     "AuxiliaryHead", "Functions", "Upsamples", "norm with activation", "standardised convolution",
     "padded convolution"],
)  # fmt: skip
def test_odd_network_is_quantized_saved_and_loaded(name, tmp_path):
    module = network(name)
    before = copy.deepcopy(module.state_dict())
    result = quantized(name)
    result.save(tmp_path / "model.safetensors")
    loaded = synq_fast.load(tmp_path / "model.safetensors", model=module)
    images = torch.randn(5, *SHAPE)
    with torch.no_grad():
        expected = module(images.clone())
        found = result.model(images)
        assert torch.equal(loaded(images), found)
    # Eight bits and two steps of a small rate keep a network close to what it was.
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in before.items())
