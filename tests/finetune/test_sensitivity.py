"""What a quantizer costs, beside networks in which nothing but it was replaced by hand."""

import copy

import pytest
import torch
from torch.nn import functional

from synq_fast import reference
from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.engine.student import build_student
from synq_fast.errors import NonFiniteLossError
from synq_fast.finetune.sensitivity import SensitivityLoop
from synq_fast.quant import BitWidths, trace
from synq_fast.quant.settings import Quantization
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.tiny import tiny_images, tiny_labels, tiny_net

WHOLE = (1.0, 1.0)


def source(images=None):
    bank = ImageBank(tiny_images(12) if images is None else images, tiny_labels(12))
    return BatchSource(bank, 6, WHOLE, Filter(kind="none"), 0)


def measuring(net=None, path=None, fingerprint="print", images=None, **recipe):
    graph = trace(net or tiny_net(), tiny_images(2))

    def build(bits):
        return build_student(graph, BitWidths(bits, bits), Quantization(**recipe)).eval()

    checkpoint = None if path is None else CheckpointFile(path, 0.0)
    return SensitivityLoop(
        graph, build, source(images), 2, checkpoint=checkpoint, fingerprint=fingerprint
    )


def divergence(net, other) -> float:
    """KL(float || other), mean over the images, in float64."""
    batches = source()
    images = torch.cat([batches(step)[0] for step in range(2)])
    with torch.no_grad():
        expected, found = (functional.log_softmax(n(images).double(), 1) for n in (net, other))
    return functional.kl_div(found, expected, log_target=True, reduction="batchmean").item()


def test_weights_are_those_of_a_network_with_that_layer_alone_quantized():
    found = {each.name: each for each in measuring().run() if each.kind == "weights"}
    assert {name: each.size for name, each in found.items()} == {
        "conv1": 6 * 2 * 9,
        "conv2": 6 * 6 * 9,
        "fc": 18,
    }
    for name in found:
        for bits in (2, 3, 8):
            other = copy.deepcopy(tiny_net())
            layer = other.get_submodule(name)
            weight, _, _ = reference.fake_quantize_dynamic(layer.weight.detach(), bits, axis=0)
            layer.weight.data.copy_(weight)
            expected = divergence(tiny_net(), other)
            assert found[name].losses[bits] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_activations_are_those_of_a_network_with_that_value_alone_quantized():
    """Its range is the extremes of what the float network gives there."""

    class Quantized(torch.nn.Module):
        def __init__(self, bits, where, low=None, high=None):
            super().__init__()
            self.bits, self.where, self.low, self.high = bits, where, low, high
            self.net = tiny_net()

        def seen(self, x, where):
            if where == self.where:
                self.value = x
                if self.low is not None:
                    x = reference.fake_quantize(x, self.low, self.high, self.bits)
            return x

        def forward(self, x):
            net = self.net
            x = self.seen(net.bn1(net.conv1(x)).relu(), "quantize_relu")
            x = self.seen((net.bn2(net.conv2(x)) + x).relu(), "quantize_relu_1")
            return net.fc(x.mean((2, 3)))

    found = {each.name: each for each in measuring(range="minmax").run() if "weig" not in each.kind}
    assert [(each.kind, each.size) for each in found.values()] == [("activations", 6 * 64)] * 2
    batches = source()
    images = torch.cat([batches(step)[0] for step in range(2)])
    for name, each in found.items():
        plain = Quantized(2, name)
        with torch.no_grad():
            plain(images)
        low, high = plain.value.aminmax()
        for bits in (2, 4):
            expected = divergence(tiny_net(), Quantized(bits, name, low, high))
            assert each.losses[bits] == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("weight_range", ["minmax", "mse", "learned"])
def test_eight_bits_cost_next_to_nothing_and_two_most(weight_range):
    recipe = {"weight_range": weight_range, "learn_ranges": weight_range == "learned"}
    for each in measuring(**recipe).run():
        losses = [each.losses[bits] for bits in range(2, 9)]
        assert 0 < losses[-1] < 1e-6 and losses[-1] < 1e-2 * losses[0], each.name
        # Neighbours may change places where a grid happens to fit; two bits are 16 times the error.
        assert all(a > b for a, b in zip(losses, losses[2:], strict=False)), each.name


def test_image_is_measured_at_its_own_width_alone():
    found = measuring(placement="all_inputs").run()
    image = [each for each in found if each.kind == "image"]
    assert [(each.name, each.size, list(each.losses)) for each in image] == [
        ("quantize_x", 128, [8])
    ]
    assert all(len(each.losses) == 7 for each in found if each.kind != "image")


def test_killed_between_any_two_measurements_it_ends_in_the_same_numbers(tmp_path):
    expected = measuring().run()
    for kill_at in (0, 17, 34):
        path, seen = tmp_path / f"{kill_at}.safetensors", []

        def report(record, kill_at=kill_at, seen=seen):
            if len(seen) == kill_at:
                raise KeyboardInterrupt
            seen.append(record)

        with pytest.raises(KeyboardInterrupt):
            measuring(path=path).run(report)
        again = measuring(path=path)
        assert again.resumed is (kill_at > 0)
        records = []
        assert again.run(records.append) == expected
        assert len(records) == again.steps - kill_at + again.resumed
        assert measuring(path=path).run() == expected
    # Another run's numbers are not taken for this one's.
    assert not measuring(path=path, fingerprint="another").resumed


def test_numbers_that_are_not_finite_stop_it():
    net = tiny_net()
    net.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r'sensitivity stopped .* "kl" is nan'):
        measuring(net).run()
