"""Models of torchvision and timm, with their input shape and normalisation."""

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.error import URLError

from torch import nn

from synq_fast.errors import ModelError
from synq_fast.models.published import (
    AUXILIARY_HEADS,
    published_options,
    size_options,
    warn_of_assumptions,
)
from synq_fast.runtime.defaults import plain_defaults
from synq_fast.runtime.extras import needs
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Weights = str | os.PathLike[str] | enum.Enum | None
Options = Mapping[str, Any]
RANDOM = "random"


@dataclass(frozen=True)
class KnownModel:
    """A module and as much as is known of its input."""

    module: nn.Module
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the builder was called with, beside its name."""
    unused: tuple[str, ...] = ()
    """Prefixes of what a checkpoint may hold beside the module: heads for training alone."""


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers; empty without torchvision."""
    try:
        import torchvision
    except ImportError:
        return []
    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_model(
    name: str,
    weights: Weights,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    given: Options,
) -> tuple[KnownModel, Weights] | None:
    """Build a torchvision classifier; None when torchvision has none of this name.

    Args:
        name: torchvision's name.
        weights: None for torchvision's pretrained weights (the first set it published, which
            papers quote), one of its sets or its name, "random", or a checkpoint to be loaded by
            the caller.
        num_classes: of the checkpoint; ignored with pretrained weights.
        input_shape: (C, H, W) of an image, for architectures that are built for one size.
        given: options of the builder; they go before those that follow from the weights.

    Returns:
        The model, and what is still to be loaded.

    Raises:
        ModelError: the pretrained weights cannot be downloaded or hold no classifier, or the
            options do not fit.
    """
    if name not in torchvision_names():
        return None
    import torchvision

    sets = torchvision.models.get_model_weights(name)
    first = next(iter(sets), None)
    wanted = weights.name if isinstance(weights, enum.Enum) else weights
    chosen = first if wanted is None else sets.__members__.get(os.fspath(wanted))
    if chosen is None and (wanted is None or isinstance(weights, enum.Enum)):
        raise ModelError(
            f"torchvision has no pretrained weights {wanted or ''} for {name}: pass weights=PATH "
            '(--weights PATH on the command line), or "random" for an untrained model'
        )
    if chosen is not None and not chosen.meta.get("categories"):
        raise ModelError(f"the weights {chosen.name} of {name} are features without a classifier")
    described_by = chosen or first
    crop, mean, std = 224, IMAGENET_MEAN, IMAGENET_STD
    if described_by is not None:
        transforms = described_by.transforms()
        crop, mean, std = transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std)
    size = (crop, crop) if chosen is not None or input_shape is None else tuple(input_shape[1:])
    options = {**size_options(name, size), **published_options("torchvision", name)}
    if name in AUXILIARY_HEADS:
        options |= {"aux_logits": False, "init_weights": False}
    if chosen is None and num_classes is not None:
        options["num_classes"] = num_classes
    options |= given
    try:
        with plain_defaults():
            module = torchvision.models.get_model(name, weights=chosen, **options)
    except (URLError, OSError, RuntimeError) as error:
        if chosen is None:
            raise
        raise ModelError(
            f"the pretrained weights of {name} ({chosen.name}) could not be downloaded ({error}); "
            "pass weights=PATH (--weights PATH on the command line) to a checkpoint on this machine"
        ) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"torchvision cannot build {name} with {options}: {error}; check options= and "
            "input_shape="
        ) from error
    if chosen is None and wanted != RANDOM:
        warn_of_assumptions("torchvision", name, given)
    unused = AUXILIARY_HEADS.get(name, ())
    known = KnownModel(module, (3, crop, crop), mean, std, options, unused)
    return known, None if chosen is not None else weights


def timm_model(
    name: str,
    weights: Weights,
    num_classes: int | None,
    input_shape: tuple[int, ...] | None,
    given: Options,
) -> tuple[KnownModel, Weights]:
    """Build a timm model; as `torchvision_model`, but an unknown name raises.

    Raises:
        MissingExtraError: timm is not installed.
        ModelError: it has no such model, or a download failed.
    """
    needs("timm", f"timm/{name}")
    import timm

    options = published_options("timm", name)
    if num_classes is not None and weights is not None:
        options["num_classes"] = num_classes
    options |= given

    def build() -> nn.Module:
        try:
            with plain_defaults():
                module: nn.Module = timm.create_model(name, pretrained=weights is None, **options)
        except Exception as error:
            pass_on_memory_errors(error)
            raise ModelError(
                f"timm could not build {name} ({error}); check the name (timm.list_models()), and "
                "without a network pass weights=PATH (--weights PATH on the command line)"
            ) from error
        return module

    module = build()
    config = getattr(module, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is not None and input_shape is not None and tuple(size) != tuple(input_shape):
        # timm fits published weights to another size and number of channels by itself.
        before = dict(options)
        if size[0] != input_shape[0]:
            options.setdefault("in_chans", input_shape[0])
        if config.get("fixed_input_size") and tuple(size[1:]) != tuple(input_shape[1:]):
            options.setdefault("img_size", tuple(input_shape[1:]))
        module = module if options == before else build()
    if weights is not None and weights != RANDOM:
        warn_of_assumptions("timm", name, given)
    return replace(described(module), options=options), weights


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
