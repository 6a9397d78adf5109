"""Teachers: the full-precision models that synq-fast quantizes."""

from synq_fast.models.registry import list_teachers, load_teacher
from synq_fast.models.resnet_cifar import (
    cifar_resnet,
    cifar_resnet20,
    cifar_resnet20_kd,
    digits_resnet20,
)
from synq_fast.models.teacher import Teacher
from synq_fast.models.weights import load_weights

__all__ = [
    "Teacher",
    "cifar_resnet",
    "cifar_resnet20",
    "cifar_resnet20_kd",
    "digits_resnet20",
    "list_teachers",
    "load_teacher",
    "load_weights",
]
