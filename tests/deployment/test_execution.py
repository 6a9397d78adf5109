import pytest
import torch
from torch import nn

from synq_fast.deployment import execution
from synq_fast.deployment.agreement import agreement
from synq_fast.deployment.execution import int8_form, int8_reason
from synq_fast.deployment.freezing import freeze
from synq_fast.deployment.int8_modules import Int8Layer, Int8Quantizer
from synq_fast.errors import ModelError
from synq_fast.models import Teacher
from tests.deployment.conftest import noise, quantized, residual, student
from tests.transformers import tiny_vit

pytestmark = [
    pytest.mark.skipif(int8_reason() is not None, reason=str(int8_reason())),
    pytest.mark.skipif(execution.saturates(), reason="8-bit sums saturate without VNNI"),
]


def compared(network, teacher, **frozen):
    whole = freeze(network, **frozen)
    images = noise(teacher, 40).contiguous(memory_format=torch.channels_last)
    integer = int8_form(whole)
    return agreement(whole(images), integer(images)), integer


@pytest.mark.parametrize("layer_inputs_only", [True, False])
@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w3a7"])
def test_the_frozen_network_in_onednn(bits, layer_inputs_only):
    found, integer = compared(student(bits), residual(), layer_inputs_only=layer_inputs_only)
    assert found.decided == 1 and found.median < 1e-6, found
    layers = [m for m in integer.modules() if isinstance(m, Int8Layer)]
    assert len(layers) == 6


class Sums(nn.Module):
    """Identity shortcuts, one of which is read again after the sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.second, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(x + self.first(x))
        z = self.second(y) + y
        return self.head((torch.relu(z) + x).mean((2, 3)))


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_sums_join_their_convolutions_and_keep_what_is_read_later(bits):
    torch.manual_seed(0)
    teacher = Teacher(Sums().eval(), "sums", (3, 9, 7), (0.0,) * 3, (1.0,) * 3, 4)
    found, integer = compared(quantized(teacher, bits), teacher, layer_inputs_only=True)
    assert found.median < 1e-6 and found.decided == 1, found
    joined = [m for m in integer.modules() if isinstance(m, Int8Layer) and m.added]
    assert [layer.copies for layer in joined] == [True]


def test_a_transformer():
    teacher = tiny_vit()
    found, integer = compared(quantized(teacher, "w8a8"), teacher)
    assert found.median < 1e-4 and found.decided == 1, found
    assert sum(isinstance(m, Int8Layer) for m in integer.modules()) == 10


def test_layers_outside_the_grid_stay_in_float():
    found, integer = compared(student("w4a4", "after_relu"), residual())
    assert found.median < 1e-6
    assert sum(isinstance(m, Int8Layer) for m in integer.modules()) == 4


def test_codes_are_those_of_the_frozen_quantizer():
    frozen = freeze(student("w4a4"))
    for module in frozen.modules():
        if type(module).__name__ == "FrozenQuantizer":
            x = torch.linspace(-5, 5, 1001)
            differ = Int8Quantizer(module)(x) != module.codes(x)
            # A reciprocal for a division: ties alone.
            assert differ.float().mean() < 0.01


def test_a_machine_without_onednn_is_told(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ModelError, match="does not run here: this PyTorch has no oneDNN"):
        int8_form(freeze(student("w4a4")))
