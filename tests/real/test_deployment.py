"""A network that people know, in the runtimes that people use."""

import pytest

from synq_fast.data import data_root, load_dataset
from synq_fast.deployment.execution import int8_form, int8_reason, saturates
from synq_fast.deployment.freezing import freeze
from synq_fast.deployment.onnx_file import onnx_bytes
from synq_fast.deployment.targets import target_of
from synq_fast.deployment.verification import check_graph, check_runtime
from synq_fast.engine.evaluation import evaluate
from synq_fast.errors import DataError
from synq_fast.models import load_teacher
from tests.deployment.conftest import quantized

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def cifar():
    """The teacher, its 8-bit student with ranges from noise, and real images."""
    try:
        weights = data_root() / "cifar10_resnet20.safetensors"
    except DataError as error:
        pytest.skip(f"real weights and images are needed: {error}")
    teacher = load_teacher("cifar10-resnet20", weights=weights)
    images = load_dataset("cifar10", teacher)
    return quantized(teacher, "w8a8"), teacher, images


def test_cifar_in_onnx_runtime(cifar):
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    from synq_fast.deployment.runtimes import OnnxRuntime

    student, teacher, dataset = cifar
    frozen, (images, _) = freeze(student), next(dataset.batches(256))
    content = onnx_bytes(frozen, teacher.input_shape, target_of("ort"))
    assert check_graph(frozen, content, images[:64], images[:64], None).passed
    check = check_runtime(frozen, OnnxRuntime(content), frozen(images), images)
    assert check.passed and check.integer_layers == 20
    # Each weight is a byte, and a tenth more for what is around it.
    assert len(content) < 1.15 * sum(p.numel() for p in teacher.module.parameters())


@pytest.mark.skipif(int8_reason() is not None or saturates(), reason="no exact 8-bit products")
def test_cifar_in_integers(cifar):
    student, _, images = cifar
    expected = evaluate(student, images, batch_size=512)
    found = evaluate(int8_form(freeze(student, layer_inputs_only=True)), images, batch_size=512)
    # Two standard errors of ranges that noise gave.
    assert found.top1 == pytest.approx(expected.top1, abs=2.0)
    assert found.top1 > 80
