import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.models import cifar_resnet20
from synq_fast.quant import ActivationQuantizer, observing, quantized_copy, trace
from synq_fast.quant.bits import BitPolicy, BitWidths
from synq_fast.quant.layers import WeightQuantized
from synq_fast.recipes import load_recipe
from tests.tiny import SHAPE, tiny_images, tiny_net


def quantized(
    module: nn.Module,
    placement: str,
    weight_bits: int = 4,
    activation_bits: int = 4,
    shape: tuple[int, ...] = SHAPE,
):
    def make(bits: int, /, *, heads: int | None) -> ActivationQuantizer:
        return ActivationQuantizer(bits, policy="minmax", heads=heads)

    return quantized_copy(
        trace(module.eval(), torch.zeros(2, *shape)),
        BitPolicy(BitWidths(weight_bits, activation_bits)),
        placement=placement,
        make_quantizer=make,
    )


def quantizers(student) -> dict[str, ActivationQuantizer]:
    return {n: m for n, m in student.named_modules() if isinstance(m, ActivationQuantizer)}


def test_shared_relu_gets_one_quantizer_per_call_with_its_own_range():
    student = quantized(tiny_net(), "after_relu", 8, 8)
    found = quantizers(student)
    assert set(found) == {"quantize_relu", "quantize_relu_1"}
    images = tiny_images(8)
    with torch.no_grad(), observing(student):
        student(images)
        conv = student.bn1(student.conv1(images)).relu()
    assert found["quantize_relu"].range_max == conv.max()
    assert found["quantize_relu"].range_max != found["quantize_relu_1"].range_max


@pytest.mark.parametrize(
    ("build", "count"),
    # One per ReLU call: the stem's and two in each block.
    [(cifar_resnet20, 19), (lambda: torchvision.models.resnet18(weights=None), 17)],
    ids=["cifar_resnet20", "resnet18"],
)
def test_quantizers_after_every_relu_call(build, count):
    assert len(quantizers(quantized(build(), "after_relu", shape=(3, 32, 32)))) == count


def test_quantized_tensor_is_what_the_next_layers_see():
    student = quantized(tiny_net(), "after_relu", 8, 2)
    images = tiny_images(4)
    seen = {}
    student.conv2.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad(), observing(student):
        student(images)
    assert len(seen["x"].unique()) <= 4


class ForkedInput(nn.Module):
    """Two convolutions read the image, two layers read one hidden tensor."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
        self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        hidden = (self.left(x) + self.right(x)).mean((2, 3))
        return self.fc1(hidden) + self.fc2(hidden)


def test_all_inputs_has_one_quantizer_per_distinct_tensor():
    student = quantized(ForkedInput(), "all_inputs", 4, 3)
    found = quantizers(student)
    assert {name: q.bits for name, q in found.items()} == {"quantize_x": 8, "quantize_mean": 3}
    seen = []
    for layer in (student.left, student.right):
        layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad(), observing(student):
        student(tiny_images(2))
    assert seen[0] is seen[1]
    assert sum(node.target in found for node in student.graph.nodes) == 2


def test_all_inputs_of_resnet20():
    # The image, and what each of the 18 other convolutions and the classifier reads.
    found = quantizers(quantized(cifar_resnet20(), "all_inputs", shape=(3, 32, 32)))
    assert len(found) == 20
    assert sorted(q.bits for q in found.values()) == [4] * 19 + [8]


def test_relu_as_function_and_method_counts():
    class Forms(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.relu6 = nn.ReLU6()

        def forward(self, x):
            x = functional.relu(self.fc(x))
            x = torch.relu(self.fc(x))
            x = self.fc(x).relu()
            x = functional.relu6(self.fc(x))
            x = self.relu6(self.fc(x))
            return self.fc(x)

    assert len(quantizers(quantized(Forms(), "after_relu", shape=(4,)))) == 5


def test_every_layer_gets_the_weight_bits_and_the_teacher_none():
    net = tiny_net()
    student = quantized(net, "after_relu", 3)
    bits = [m.weight_bits for m in student.modules() if isinstance(m, WeightQuantized)]
    assert bits == [3, 3, 3]
    assert not any(isinstance(m, WeightQuantized) for m in net.modules())
    assert student.conv1.weight is not net.conv1.weight
    assert torch.equal(student.conv1.weight, net.conv1.weight)


def test_student_is_trainable_whatever_the_teacher_is():
    net = tiny_net().requires_grad_(False)
    student = quantized(net, "after_relu")
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("placement", ["after_relu", "all_inputs"])
def test_model_without_layers(placement):
    with pytest.raises(ModelError, match="no convolution or linear layer"):
        quantized(nn.Sequential(nn.ReLU(), nn.Flatten()), placement)


def test_model_without_relu_names_the_other_placement():
    with pytest.raises(ModelError, match='placement "after_relu"') as caught:
        quantized(nn.Sequential(nn.Conv2d(2, 2, 1), nn.GELU()), "after_relu")
    assert 'quantization.placement = "all_inputs"' in str(caught.value)
    load_recipe("synq-digits", {"quantization.placement": "all_inputs"})
