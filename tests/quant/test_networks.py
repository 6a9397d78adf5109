"""Every form of the networks that once went wrong computes what the user's module does."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.errors import TraceError
from synq_fast.graph import trace
from synq_fast.quant import (
    Tapped,
    check_forms,
    coverage_of,
    fidelity,
)
from synq_fast.quant.activations import bypassing
from synq_fast.quant.layers import WeightQuantized
from tests.networks import NETWORKS, network
from tests.odd_networks.net import SHAPE, Net
from tests.quant.forms import every_form, traced


def images(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def forms(module: nn.Module, leaves=()):
    return traced(module, images().to(next(module.parameters()).dtype), leaves)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_form_computes_what_the_module_does(name):
    module = network(name).double()
    before = copy.deepcopy(module.state_dict())
    graph, student, points = forms(copy.deepcopy(module))
    for count in (1, 2, 5):
        x = images(count, seed=count).double()
        given = x.clone()
        with torch.no_grad():
            expected = module(x.clone())
            for form in every_form(graph, student, points):
                for layout in (torch.contiguous_format, torch.channels_last):
                    with bypassing(form):
                        found = form(x.to(memory_format=layout))
                    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
                assert torch.equal(x, given), "the caller's images were overwritten"
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_guard_lets_right_networks_through(name):
    module = network(name)
    graph, student, points = forms(module)
    check_forms(module, graph, student, points)


def test_a_type_that_tracing_wrote_down_meets_weights_of_another():
    """As in EdgeNeXt, whose positions are cast to the type of the weight that reads them."""

    class Cast(Net):
        def body(self, x):
            return self.conv2(super().body(x).to(self.conv2.weight.dtype))

    module = Cast().eval()
    graph, student, points = forms(module)
    assert any(torch.float32 in node.args for node in graph.graph.nodes)
    check_forms(module, graph, student, points)
    other = Cast().eval()
    with pytest.raises(TraceError, match="traced network computes something else"):
        check_forms(other, graph, student, points)


def test_opaque_module_may_write_to_its_input():
    module = network("OpaqueWrite")
    graph, student, points = forms(module, ["leaf"])
    check_forms(module, graph, student, points)
    assert torch.equal(graph(images(3)), module(images(3)))


def test_functions_are_quantized_like_layers():
    expected = {"Functions": 3, "standardised convolution": 3, "padded convolution": 3,
                "scaled linear": 3, "weights from the image": 2}  # fmt: skip
    for name, count in expected.items():
        _, student, _ = forms(network(name))
        found = [n for n, m in student.named_modules() if isinstance(m, WeightQuantized)]
        assert len(found) == count, (name, found)


def test_layers_go_by_the_name_of_their_module():
    graph, _, points = forms(network("standardised convolution"))
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_module"}
    assert called == {"conv1", "bn1", "relu", "conv2", "bn2", "fc"}
    assert type(graph.get_submodule("conv2")) is nn.Conv2d
    assert len(points.norms) == 2


def test_subclassed_norms_are_not_folded_as_plain_ones():
    # What the subclass adds stays in the graph behind the plain normalisation.
    graph, _, points = forms(network("norm with activation"))
    assert len(points.norms) == 2
    assert any(n.target is functional.leaky_relu for n in graph.graph.nodes)
    graph, _, points = forms(network("norm of own arithmetic"))
    assert len(points.norms) == 1


@pytest.mark.parametrize("name", ["AuxiliaryHead", "Detached"])
def test_map_is_read_where_the_logits_have_a_gradient(name):
    graph, _, points = forms(network(name))
    node = next(n for n in graph.graph.nodes if n.name == points.maps[-1])
    assert node.target == "conv2"


def test_overwritten_parameter_is_refused():
    class Counts(Net):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(4, 1, 1))

        def body(self, x):
            self.gain.mul_(2)
            return super().body(x * self.gain)

    with pytest.raises(TraceError, match=r"overwrites its own gain.*clone\(\)"):
        trace(Counts().eval().requires_grad_(False), images())


def test_control_flow_on_values_is_still_refused():
    class DependsOnValues(Net):
        def body(self, x):
            return super().body(x) if x.sum() > 0 else x

    with pytest.raises(TraceError, match="control flow on tensor values"):
        trace(DependsOnValues().eval(), images())


def broken(change):
    module = network("AddsWithAlpha")
    graph, student, points = forms(module)
    change(graph)
    graph.recompile()
    return module, graph, student, points


def test_guard_names_the_first_node_that_differs():
    def lose_alpha(graph):
        node = next(n for n in graph.graph.nodes if n.target is torch.add)
        node.kwargs = {}

    with pytest.raises(TraceError, match=r'"relu_1" \(relu\), after "bn2"'):
        check_forms(*broken(lose_alpha))


def test_guard_sees_an_epsilon():
    module = network("Net")
    graph, student, points = forms(copy.deepcopy(module))
    graph.get_submodule("bn1").eps = 1e-3
    with pytest.raises(TraceError, match='"bn1"'):
        check_forms(module, graph, student, points)


def test_guard_sees_a_wrong_quantized_form():
    module = network("AddsWithAlpha")
    graph, student, points = forms(module)
    next(n for n in student.graph.nodes if n.target is torch.add).kwargs = {}
    student.recompile()
    with pytest.raises(TraceError, match="quantized network computes something else"):
        check_forms(module, graph, student, points)


def test_guard_of_a_network_that_fills_the_memory(monkeypatch):
    monkeypatch.setattr(fidelity, "free_memory", lambda device: 4 * 8 * 100)

    def no_float64(self, module, images, dtype, prepare=fidelity._Own.__init__):
        assert dtype == torch.float32
        prepare(self, module, images, dtype)

    monkeypatch.setattr(fidelity._Own, "__init__", no_float64)
    module = network("AddsWithAlpha")
    graph, student, points = forms(module)
    check_forms(module, graph, student, points)
    next(n for n in student.graph.nodes if n.target is torch.add).kwargs = {}
    student.recompile()
    with pytest.raises(TraceError, match="quantized network computes something else"):
        check_forms(module, graph, student, points)


def test_guard_leaves_everything_as_it_was():
    module = network("Net")
    graph, student, points = forms(module)
    before, state = student.code, torch.random.get_rng_state()
    check_forms(module, graph, student, points)
    assert student.code == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {p.dtype for p in (*module.parameters(), *student.parameters())} == {torch.float32}
    assert not any(m.bypass for m in student.modules() if hasattr(m, "bypass"))


def test_taps_read_the_value_before_it_is_overwritten():
    module = network("ReluOfIdentity").eval()
    graph, _, _ = forms(module)
    with torch.no_grad():
        expected = module.bn2(module.conv2(module.stem(images())))
        (found,) = Tapped(graph, ["bn2"])(images()).features
    assert (expected < 0).any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_network_is_pickled_and_copied(name):
    _, student, _ = forms(network(name))
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copy.deepcopy(student)):
        with bypassing(other), bypassing(student):
            assert torch.equal(other(images(3)), student(images(3)))


def test_tensorflows_efficientnet_lite_is_quantized_completely():
    # Every one of its convolutions pads for itself and every BatchNorm brings an activation.
    timm = pytest.importorskip("timm")
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    own = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph, student, points = traced(module, x, placement="all_inputs")
    found = coverage_of(student)
    assert (found.weights, found.weights_of) == (len(own), len(own)) == (50, 50)
    assert (found.inputs, found.float_inputs) == (50, ())
    assert len(points.norms) == 49
    check_forms(module, graph, student, points)
