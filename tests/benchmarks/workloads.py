"""A workload of the small network, for the benchmarks of whole steps."""

from benchmarks.cases import Case, Workload
from synq_fast.models.resnet_cifar import CifarResNet, cifar_resnet
from tests.tiny import tiny_images, tiny_labels, tiny_teacher


def tiny_workload(batch: int = 4) -> Workload:
    return Workload(Case("tiny", batch), tiny_teacher(), tiny_images(batch), tiny_labels(batch))


def resnet8() -> CifarResNet:
    """The smallest network with all that the published step looks for."""
    return cifar_resnet(8, num_classes=3)
