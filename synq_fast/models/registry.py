"""Finding a teacher by name, import string or module."""

import difflib
import enum
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq_fast.errors import ModelError
from synq_fast.models import resnet_cifar, zoo
from synq_fast.models.preparation import plain_copy, without_wrapped_weights
from synq_fast.models.teacher import Teacher, checked_shape, make_teacher
from synq_fast.models.weights import load_weights
from synq_fast.runtime.defaults import plain_defaults
from synq_fast.storage.paths import user_path

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
    weights: zoo.Weights = None,
    input_shape: Iterable[int] | None = None,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Teacher:
    """Load the full-precision model that is to be quantized.

    Args:
        model: one of
            - "digits-resnet20": trained, part of the package;
            - "cifar10-resnet20", "cifar100-resnet20kd": need `weights`;
            - "torchvision/<name>" or just a torchvision name ("resnet18"): with torchvision's own
              pretrained weights unless `weights` says otherwise;
            - "timm/<name>": the same for timm, where it is installed;
            - "package.module:factory": a function or class of yours, called with `options` alone;
            - a module. It is copied, yours stays as it is. Wrappers (DataParallel, torch.compile,
              AveragedModel) are taken off the copy, and weights that are computed by pruning,
              weight or spectral normalisation or another parametrization become plain ones.
        weights: a checkpoint (see `load_weights`), "random" for an untrained model, or a set of
            torchvision weights or its name ("IMAGENET1K_V2").
        input_shape: (C, H, W) of one image; known for the named models and for timm's.
        mean: normalisation per channel on a 0..1 scale; known for the named models and for timm's,
            else 0.
        std: normalisation per channel on a 0..1 scale; known for the named models and for timm's,
            else 1.
        num_classes: number of classes of the checkpoint, for a torchvision or timm model; for any
            other model it is only checked.
        device: where to put the model; by default it stays where it is.
        options: of the builder of a torchvision or timm model or of your factory, such as
            `{"transform_input": False}`; they go before those that follow from the weights.

    Returns:
        The model in eval mode, its parameters without gradients.

    Raises:
        ModelError: no such model, a missing shape or missing weights, a normalisation that is known
            for another number of channels, or not a classifier.
        CheckpointError: the checkpoint is unreadable or belongs to another model.
    """
    wanted = None if input_shape is None else checked_shape(input_shape)
    if isinstance(model, Teacher):
        asked: dict[str, Any] = {"input_shape": wanted, "mean": mean, "std": std}
        asked |= {"num_classes": num_classes, "options": options}
        other = [k for k, v in asked.items() if v is not None and v != getattr(model, k)]
        if other or weights is not None:
            raise ModelError(
                f"{', '.join(other or ['weights'])} cannot be changed in a Teacher that is made "
                f"already: pass it where the teacher is loaded, or use dataclasses.replace"
            )
        return model if device is None else model.to(device)
    asked_for = weights
    if isinstance(model, str):
        name = model
        known, weights = _by_name(model, weights, num_classes, wanted, dict(options or {}))
    elif options:
        raise ModelError("options= are those of a builder: they need a model by name")
    else:
        known = zoo.described(plain_copy(model))
        name = type(known.module).__name__
    if isinstance(weights, enum.Enum):
        raise ModelError(f"{weights} are torchvision's weights, which {name} cannot take")
    if weights is not None and weights != zoo.RANDOM:
        load_weights(known.module, weights, unused=known.unused)
    without_wrapped_weights(known.module)
    given = known.input_shape if wanted is None else wanted
    if given is None:
        raise ModelError(
            f"the input shape of {name} is unknown: pass input_shape=(channels, height, width) "
            "(--input-shape on the command line)"
        )
    shape = checked_shape(given)
    if device is not None:
        known.module.to(device)
    if mean is None:
        mean = zoo.for_channels(known.mean, shape, name, "mean")
    if std is None:
        std = zoo.for_channels(known.std, shape, name, "std")
    teacher = make_teacher(known.module, name, shape, mean, std, num_classes)
    source = _source(asked_for, is_file=weights is not None)
    return replace(teacher, options=known.options, source=source)


def _source(weights: zoo.Weights, *, is_file: bool) -> str | None:
    """What ``load_teacher`` finds given weights by again; None without any and for random ones."""
    if weights is None or weights == zoo.RANDOM:
        return None
    if isinstance(weights, enum.Enum):
        return weights.name
    return str(user_path(weights).absolute()) if is_file else str(weights)


def _by_name(
    name: str,
    weights: zoo.Weights,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    options: dict[str, Any],
) -> tuple[zoo.KnownModel, zoo.Weights]:
    if name in _ARCHITECTURES:
        entry = _ARCHITECTURES[name]
        if weights is None and entry.weights is None:
            raise ModelError(
                f"{name} is an architecture without weights: pass weights=PATH (--weights PATH on "
                'the command line), or "random" for an untrained model'
            )
        if options:
            raise ModelError(f"{name} has no options, got {', '.join(options)}")
        with plain_defaults():
            module = entry.build()
        known = zoo.KnownModel(module, entry.input_shape, entry.mean, entry.std)
        return known, entry.weights if weights is None else weights
    if name.startswith("timm/"):
        return zoo.timm_model(
            name.removeprefix("timm/"), weights, num_classes, input_shape, options
        )
    if ":" in name:
        module = plain_copy(_from_import_string(name, options))
        return replace(zoo.described(module), options=options), weights
    found = zoo.torchvision_model(
        name.removeprefix("torchvision/"), weights, num_classes, input_shape, options
    )
    if found is None:
        choices = [*_ARCHITECTURES, *zoo.torchvision_names()]
        close = difflib.get_close_matches(name.removeprefix("torchvision/"), choices, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"no model {name!r}{hint} Known are {', '.join(_ARCHITECTURES)}, torchvision's "
            'classifiers, "timm/<name>" and import strings "package.module:factory"'
        )
    return found


def _from_import_string(name: str, options: Mapping[str, Any]) -> Any:
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
        if options:
            raise ModelError(f"{name!r} is a module, not a factory that could take options")
        return target
    if not callable(target):
        raise ModelError(f"{name!r} is {type(target).__name__}, expected a function or a module")
    try:
        module = target(**options)
    except TypeError as error:
        with_what = f"with {', '.join(options)}" if options else "without arguments"
        raise ModelError(f"{name!r} cannot be called {with_what}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name!r} returned {type(module).__name__}, expected an nn.Module")
    return module
