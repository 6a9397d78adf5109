"""The real weights reach their published accuracy on the real images."""

import pytest
from torch.utils.data import Subset

from synq_fast.data import data_root, load_dataset
from synq_fast.engine.evaluation import evaluate
from synq_fast.errors import DataError
from synq_fast.models import load_teacher

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def root():
    try:
        return data_root()
    except DataError as error:
        pytest.skip(f"real weights and images are needed: {error}")


@pytest.mark.parametrize(
    ("name", "weights", "dataset", "right", "count"),
    [
        # 932 of 1017 is 91.64 %, 631 of 916 is 68.89 %.
        ("cifar10-resnet20", "cifar10_resnet20", "cifar10", 932, 1017),
        ("cifar100-resnet20kd", "cifar100_resnet20kd", "cifar100", 631, 916),
    ],
)
def test_cifar(root, name, weights, dataset, right, count):
    teacher = load_teacher(name, weights=root / f"{weights}.safetensors")
    result = evaluate(teacher, dataset)
    assert result.count == count
    # One image may change sides where another CPU rounds differently.
    assert result.top1 == pytest.approx(100 * right / count, abs=100 / count + 1e-9)


def mobilenet(root):
    return load_teacher(
        "torchvision/mobilenet_v2", weights=root / "imagenet_mobilenetv2_bn.safetensors"
    )


def test_mobilenet(root):
    """451 of the 500 images are 90.2 %; of every fifth 90 of 100."""
    teacher = mobilenet(root)
    images = load_dataset("imagenet-nips", teacher)
    assert len(images) == 500
    result = evaluate(teacher, Subset(images, range(0, 500, 5)), batch_size=25)
    assert result.top1 == pytest.approx(90.0, abs=1 + 1e-9)


def test_weights_of_one_model_are_refused_by_another(root):
    with pytest.raises(ValueError, match="not a checkpoint of this model"):
        load_teacher("cifar10-resnet20", weights=root / "cifar100_resnet20kd.safetensors")


@pytest.mark.slow
def test_deit_tiny_on_a_part(root):
    pytest.importorskip("timm", reason="timm builds DeiT: pip install timm")
    weights = root / "imagenet_deit_tiny.safetensors"
    teacher = load_teacher("timm/deit_tiny_patch16_224", weights=weights)
    images = load_dataset("imagenet-nips", teacher)
    assert evaluate(teacher, Subset(images, range(0, 500, 10)), batch_size=25).top1 >= 75
