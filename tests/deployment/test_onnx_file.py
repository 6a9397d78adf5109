import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synq_fast.deployment.agreement import agreement
from synq_fast.deployment.freezing import freeze, frozen_layers
from synq_fast.deployment.frozen import FrozenQuantizer
from synq_fast.deployment.onnx_file import OPSET, onnx_bytes
from synq_fast.deployment.targets import target_of
from synq_fast.deployment.verification import check_graph, check_runtime
from synq_fast.errors import ModelError, RecipeError
from synq_fast.models import Teacher
from tests.deployment.conftest import noise, quantized, residual, student
from tests.quant.test_random_networks import ASKED, SIZE, RandomNet, program
from tests.tiny import randomize_statistics
from tests.transformers import tiny_vit

pytestmark = pytest.mark.usefixtures("runtime")
ORT = target_of("ort")


def written(network, teacher, target=ORT, **options):
    frozen = freeze(network, layer_inputs_only=target.layer_inputs_only)
    return frozen, onnx_bytes(frozen, teacher.input_shape, target, **options)


def checked(frozen, content, images, batch=None):
    from synq_fast.deployment.runtimes import OnnxRuntime

    graph = check_graph(frozen, content, images, images, batch)
    run = check_runtime(frozen, OnnxRuntime(content, batch=batch), frozen(images), images, 1.0)
    return graph, run


@pytest.fixture(scope="module")
def four_bits():
    return written(student("w4a4"), residual(), metadata={"synq_fast.bits": "w4a4"})


def test_every_layer_runs_in_integers(four_bits):
    graph, run = checked(*four_bits, noise(residual(), 40))
    assert graph.passed and run.passed, (graph, run)
    assert graph.agreement.median < 1e-6 and set(graph.codes.values()) == {1.0}
    assert (run.integer_layers, run.float_layers) == (6, ())


def test_8_bits_at_a_fixed_batch():
    frozen, content = written(student("w8a8"), residual(), batch=8)
    graph, run = checked(frozen, content, noise(residual(), 21), batch=8)
    assert graph.passed and run.passed and run.integer_layers == 6


def test_a_file_holds_what_it_should_and_no_more(four_bits):
    import onnx

    frozen, content = four_bits
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert {p.key: p.value for p in model.metadata_props} == {"synq_fast.bits": "w4a4"}
    assert not model.graph.value_info and not any(n.doc_string for n in model.graph.node)
    assert not any(n.metadata_props for n in model.graph.node)
    types = {i.name: i.data_type for i in model.graph.initializer}
    layers = frozen_layers(frozen)
    for name in layers:
        assert types[f"{name}.stored"] == onnx.TensorProto.INT4
        assert types[f"{name}.bias"] == onnx.TensorProto.INT32
    named = {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    assert named == set(layers)
    values = {output for n in model.graph.node for output in n.output}
    assert {n.name for n in frozen.graph.nodes if n.name.startswith("quantize_")} <= values
    # Zero points of weights other than 0 would run wrongly or slowly.
    zeros = [i for i in model.graph.initializer if i.name.endswith("zero_point")]
    assert zeros and all(not onnx.numpy_helper.to_array(i).any() for i in zeros)
    assert len(content) < 16000


def test_a_file_that_computes_something_else_is_found(four_bits):
    import onnx

    frozen, content = four_bits
    model = onnx.load_from_string(content)
    (scale,) = (i for i in model.graph.initializer if i.name == "first.scale")
    values = onnx.numpy_helper.to_array(scale) * 1.05
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    graph, _ = checked(frozen, model.SerializeToString(), noise(residual(), 8))
    assert not graph.passed
    # The quantizer behind that layer: what comes before it and after it is right.
    assert [name for name, share in graph.codes.items() if share < 0.999] == ["quantize_relu6"]
    assert '"quantize_relu6"' in graph.first_difference()


def test_normalization_in_the_file():
    teacher = residual()
    normalization = teacher.mean, teacher.std
    frozen, content = written(student("w8a8"), teacher, normalization=normalization)
    pixels = torch.rand(16, *teacher.input_shape, generator=torch.Generator().manual_seed(0))
    images = teacher.normalize(pixels)
    assert check_graph(frozen, content, images, pixels, None).passed


def test_openvino_computes_the_same():
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from synq_fast.deployment.runtimes import OpenVino

    target, images = target_of("openvino"), noise(residual(), 40)
    frozen, content = written(student("w4a4"), residual(), target)
    check = check_runtime(frozen, OpenVino(content), frozen(images), images)
    assert check.passed and check.agreement.median < 1e-6
    assert check.integer_layers == 6


def test_tensorrt_has_zero_points_of_zero():
    import onnx

    target = target_of("tensorrt")
    symmetric = quantized(residual(), "w4a4", symmetric_activations=True)
    frozen, content = written(symmetric, residual(), target)
    model = onnx.load_from_string(content)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = values[node.input[2]]
            assert zero.dtype == "int8" and not zero.any()
    assert check_graph(frozen, content, noise(residual(), 8), noise(residual(), 8), None).passed
    with pytest.raises(ModelError, match=r"quantize_x has 8 bits.*symmetric_activations = true"):
        written(student("w4a4"), residual(), target)


def test_xnnpack_has_signed_activations():
    frozen, content = written(student("w8a8"), residual(), target_of("xnnpack"))
    assert check_graph(frozen, content, noise(residual(), 8), noise(residual(), 8), None).passed


@pytest.mark.parametrize("rotate", ["never", "always"])
def test_a_transformer(rotate):
    teacher = tiny_vit()
    frozen, content = written(quantized(teacher, "w8a8", rotate=rotate), teacher)
    graph, run = checked(frozen, content, noise(teacher, 40))
    assert graph.passed and run.passed
    assert run.integer_layers == len(frozen_layers(frozen)) == 10


def test_heads_with_ranges_of_their_own():
    teacher = tiny_vit()
    recipe = {"placement": "vit", "head_ranges": True, "weight_scheme": "symmetric"}
    whole = quantized(teacher, "w8a4", **recipe)
    # Those of a layer's input hold no zero, which placement integer would see to.
    frozen = freeze(whole, strict=False)
    heads = [m for m in frozen.modules() if isinstance(m, FrozenQuantizer) and not m.is_whole]
    assert len(heads) == 8 and all(m.scale.unique().numel() == 2 for m in heads)
    images = noise(teacher, 40)
    # Biases are rounded to steps of their layer's grid.
    found = agreement(whole(images), frozen(images))
    assert found.decided == 1 and found.median < 2e-3
    graph, run = checked(frozen, onnx_bytes(frozen, teacher.input_shape, target_of("ort")), images)
    assert graph.passed and run.passed
    assert {"quantize_softmax", "quantize_softmax_1"} <= graph.codes.keys()


def test_a_layer_in_float_is_named_with_the_reason():
    with pytest.raises(ModelError, match="placement = integer"):
        freeze(student("w8a8", "after_relu"))  # asymmetric 8-bit weights
    frozen, content = written(student("w4a4", "after_relu"), residual())
    graph, run = checked(frozen, content, noise(residual(), 8))
    assert graph.passed and run.passed
    reasons = {layer.name: layer.reason for layer in run.float_layers}
    assert reasons["stem"] == "its input is on no grid"
    assert "add in floating point" in reasons["second"]


class Erf(nn.Module):
    def forward(self, x):
        return torch.special.i0e(x)


def test_what_onnx_does_not_know_is_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Erf(), nn.Flatten(), nn.Linear(64, 3))
    teacher = Teacher(net.eval(), "net", (3, 4, 4), (0.0,) * 3, (1.0,) * 3, 3)
    with pytest.raises(ModelError, match=r"cannot be written as ONNX.*i0e"):
        written(quantized(teacher, "w4a4"), teacher)


@settings(max_examples=int(ASKED or 4), deadline=None, derandomize=ASKED is None)
@given(
    program=program,
    head=st.sampled_from(["plain", "scaled"]),
    bits=st.sampled_from(["w2a2", "w4a4", "w8a8"]),
    seed=st.integers(0, 3),
)
def test_random_networks_export_and_agree(program, head, bits, seed):
    torch.manual_seed(seed)
    net = randomize_statistics(RandomNet(program, head), seed).eval().requires_grad_(False)
    teacher = Teacher(net, "net", (3, SIZE, SIZE), (0.0,) * 3, (1.0,) * 3, 3)
    frozen, content = written(quantized(teacher, bits), teacher)
    graph, _ = checked(frozen, content, noise(teacher, 8))
    assert graph.passed, (graph.first_difference(), graph)


def test_an_unknown_target_is_refused():
    with pytest.raises(RecipeError, match="no export target 'tflite'; there are ort, openvino"):
        target_of("tflite")
