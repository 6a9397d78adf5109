"""Programs of torch.export: what compilers and other runtimes of PyTorch start from."""

import io

import pytest
import torch

from synq_fast.deployment.freezing import freeze
from tests.deployment.conftest import noise, residual, student


@pytest.mark.parametrize("form", ["fake-quantized", "frozen"])
def test_a_program_computes_the_same_for_any_number_of_images(form):
    network = student("w4a4")
    if form == "frozen":
        network = freeze(network)
    batch = torch.export.Dim("batch", min=1, max=64)
    images = noise(residual(), 2)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    for count in (1, 7):
        images = noise(residual(), count, seed=count)
        torch.testing.assert_close(loaded(images), network(images), rtol=1e-6, atol=1e-6)
