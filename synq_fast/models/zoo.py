"""Models of torchvision and timm, with their input shape and normalisation."""

import os
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

from torch import nn

from synq_fast.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Weights = str | os.PathLike[str] | None


@dataclass(frozen=True)
class KnownModel:
    """A module and as much as is known of its input."""

    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers; empty without torchvision."""
    try:
        import torchvision
    except ImportError:
        return []
    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_model(
    name: str, weights: Weights, num_classes: int | None
) -> tuple[KnownModel, Weights] | None:
    """Build a torchvision classifier; None when torchvision has none of this name.

    Args:
        name: torchvision's name.
        weights: None for torchvision's pretrained weights (the first set it published, which
            papers quote), the name of one of its sets, "random", or a checkpoint to be loaded by
            the caller.
        num_classes: of the checkpoint; ignored with pretrained weights.

    Returns:
        The model, and what is still to be loaded.

    Raises:
        ModelError: the pretrained weights cannot be downloaded.
    """
    if name not in torchvision_names():
        return None
    import torchvision

    sets = torchvision.models.get_model_weights(name)
    first = next(iter(sets), None)
    chosen = first if weights is None else sets.__members__.get(os.fspath(weights))
    if weights is None and chosen is None:
        raise ModelError(
            f"torchvision has no pretrained weights for {name}: pass weights=PATH (--weights PATH "
            'on the command line), or "random" for an untrained model'
        )
    options: dict[str, Any] = {}
    if chosen is None and num_classes is not None:
        options["num_classes"] = num_classes
    if name in ("googlenet", "inception_v3") and chosen is None:
        options["init_weights"] = False
    try:
        module = torchvision.models.get_model(name, weights=chosen, **options)
    except (URLError, OSError, RuntimeError) as error:
        if chosen is None:
            raise
        raise ModelError(
            f"the pretrained weights of {name} ({chosen.name}) could not be downloaded ({error}); "
            "pass weights=PATH (--weights PATH on the command line) to a checkpoint on this machine"
        ) from error
    described_by = chosen or first
    crop = 224 if described_by is None else described_by.transforms().crop_size[0]
    known = KnownModel(module, (3, crop, crop), IMAGENET_MEAN, IMAGENET_STD)
    return known, None if chosen is not None else weights


def timm_model(name: str, weights: Weights, num_classes: int | None) -> tuple[KnownModel, Weights]:
    """Build a timm model; as `torchvision_model`, but an unknown name raises.

    Raises:
        ModelError: timm is not installed or has no such model, or a download failed.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm/{name} needs timm: pip install timm") from error
    options: dict[str, Any] = {}
    if num_classes is not None and weights is not None:
        options["num_classes"] = num_classes
    try:
        module = timm.create_model(name, pretrained=weights is None, **options)
    except Exception as error:
        raise ModelError(
            f"timm could not build {name} ({error}); check the name (timm.list_models()), and "
            "without a network pass weights=PATH (--weights PATH on the command line)"
        ) from error
    return described(module), weights


def described(module: nn.Module) -> KnownModel:
    """Read shape and normalisation from a module that carries timm's `pretrained_cfg`."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(config, dict):
        return KnownModel(module)
    return KnownModel(module, config.get("input_size"), config.get("mean"), config.get("std"))


def for_channels(
    values: tuple[float, ...] | None, shape: tuple[int, ...], name: str, what: str
) -> tuple[float, ...] | None:
    """Fit a model's own normalisation to the channels of its input.

    Args:
        values: per channel of the images that the model was described for, or None.
        shape: (C, H, W) of its input.
        name: the model, shown to the user.
        what: "mean" or "std".

    Returns:
        One value per channel; None for None.

    Raises:
        ModelError: the values differ, and there is another number of them than of channels.
    """
    if values is None or len(values) == shape[0]:
        return values
    if len(set(values)) == 1:
        return (values[0],) * shape[0]
    raise ModelError(
        f"{name} describes a {what} for {len(values)} channels, {tuple(values)}, but its input has "
        f"{shape[0]}: say how its images were normalised with load_teacher(model, "
        f"input_shape=..., mean=..., std=...), whose result quantize and synthesize take"
    )
