"""Finding a teacher by name, import string or module."""

import copy
import difflib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq_fast.errors import ModelError
from synq_fast.models import resnet_cifar, zoo
from synq_fast.models.teacher import Teacher, make_teacher
from synq_fast.models.weights import load_weights

RANDOM = "random"

# Of the 1437 training images at 16x16, on a 0..1 scale, rounded to three decimals.
DIGITS_MEAN = (0.305,)
DIGITS_STD = (0.319,)


@dataclass(frozen=True)
class _Architecture:
    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Path | None = None


_ARCHITECTURES = {
    "digits-resnet20": _Architecture(
        resnet_cifar.digits_resnet20,
        (1, 16, 16),
        DIGITS_MEAN,
        DIGITS_STD,
        Path(__file__).with_name("digits_resnet20.safetensors"),
    ),
    "cifar10-resnet20": _Architecture(
        resnet_cifar.cifar_resnet20, (3, 32, 32), zoo.IMAGENET_MEAN, zoo.IMAGENET_STD
    ),
    "cifar100-resnet20kd": _Architecture(
        resnet_cifar.cifar_resnet20_kd,
        (3, 32, 32),
        (0.507, 0.487, 0.441),
        (0.267, 0.256, 0.276),
    ),
}


def list_teachers() -> list[str]:
    """Return the names of the architectures that synq-fast itself brings."""
    return list(_ARCHITECTURES)


def load_teacher(
    model: str | nn.Module | Teacher,
    *,
    weights: str | os.PathLike[str] | None = None,
    input_shape: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
) -> Teacher:
    """Load the full-precision model that is to be quantized.

    Args:
        model: one of
            - "digits-resnet20": trained, part of the package;
            - "cifar10-resnet20", "cifar100-resnet20kd": need `weights`;
            - "torchvision/<name>" or just a torchvision name ("resnet18"): with torchvision's own
              pretrained weights unless `weights` says otherwise;
            - "timm/<name>": the same for timm, where it is installed;
            - "package.module:factory": a function or class of yours, called without arguments;
            - a module. It is copied, yours stays as it is.
        weights: a checkpoint (see `load_weights`), "random" for an untrained model, or the name of
            a set of torchvision weights ("IMAGENET1K_V2").
        input_shape: (C, H, W) of one image; known for the named models and for timm's.
        mean: normalisation per channel on a 0..1 scale; known for the named models, else 0.
        std: normalisation per channel on a 0..1 scale; known for the named models, else 1.
        num_classes: number of classes of the checkpoint, for a torchvision or timm model; for any
            other model it is only checked.
        device: where to put the model; by default it stays where it is.

    Returns:
        The model in eval mode, its parameters without gradients.

    Raises:
        ModelError: no such model, a missing shape or missing weights, or not a classifier.
        CheckpointError: the checkpoint is unreadable or belongs to another model.
    """
    if isinstance(model, Teacher):
        asked: dict[str, Any] = {"input_shape": input_shape, "mean": mean, "std": std}
        asked["num_classes"] = num_classes
        other = [k for k, v in asked.items() if v is not None and v != getattr(model, k)]
        if other or weights is not None:
            raise ModelError(
                f"{', '.join(other or ['weights'])} cannot be changed in a Teacher that is made "
                f"already: pass it where the teacher is loaded, or use dataclasses.replace"
            )
        return model if device is None else model.to(device)
    if isinstance(model, nn.Module):
        name = type(model).__name__
        known = zoo.described(copy.deepcopy(model))
    elif isinstance(model, str):
        name = model
        known, weights = _by_name(model, weights, num_classes)
    else:
        raise ModelError(
            f"a teacher is given by name, import string or nn.Module, got {type(model).__name__}"
        )
    if weights is not None and weights != RANDOM:
        load_weights(known.module, weights)
    shape = input_shape or known.input_shape
    if shape is None:
        raise ModelError(
            f"the input shape of {name} is unknown: pass input_shape=(channels, height, width) "
            "(--input-shape on the command line)"
        )
    if device is not None:
        known.module.to(device)
    return make_teacher(
        known.module, name, tuple(shape), mean or known.mean, std or known.std, num_classes
    )


def _by_name(
    name: str, weights: Any, num_classes: int | None
) -> tuple[zoo.KnownModel, str | os.PathLike[str] | None]:
    if name in _ARCHITECTURES:
        entry = _ARCHITECTURES[name]
        if weights is None and entry.weights is None:
            raise ModelError(
                f"{name} is an architecture without weights: pass weights=PATH (--weights PATH on "
                'the command line), or "random" for an untrained model'
            )
        known = zoo.KnownModel(entry.build(), entry.input_shape, entry.mean, entry.std)
        return known, entry.weights if weights is None else weights
    if name.startswith("timm/"):
        return zoo.timm_model(name.removeprefix("timm/"), weights, num_classes)
    if ":" in name:
        return zoo.described(_from_import_string(name)), weights
    found = zoo.torchvision_model(name.removeprefix("torchvision/"), weights, num_classes)
    if found is None:
        choices = [*_ARCHITECTURES, *zoo.torchvision_names()]
        close = difflib.get_close_matches(name.removeprefix("torchvision/"), choices, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"no model {name!r}{hint} Known are {', '.join(_ARCHITECTURES)}, torchvision's "
            'classifiers, "timm/<name>" and import strings "package.module:factory"'
        )
    return found


def _from_import_string(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"cannot import {name!r} ({error}); expected package.module:factory, importable from "
            "here (is the folder on PYTHONPATH?)"
        ) from error
    if isinstance(target, nn.Module):
        return copy.deepcopy(target)
    if not callable(target):
        raise ModelError(f"{name!r} is {type(target).__name__}, expected a function or a module")
    try:
        module = target()
    except TypeError as error:
        raise ModelError(f"{name!r} cannot be called without arguments: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name!r} returned {type(module).__name__}, expected an nn.Module")
    return module
