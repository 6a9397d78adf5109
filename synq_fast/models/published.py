"""Options of an architecture that follow the weights that its library publishes."""

import warnings
from collections.abc import Mapping
from typing import Any

from synq_fast.errors import SynqFastWarning

# Both libraries set these only when they load their own weights: the same weights from a file
# need them too. By option: the value with those weights, and the builder's default.
_PUBLISHED: dict[tuple[str, str], dict[str, tuple[Any, Any]]] = {
    ("torchvision", "googlenet"): {"transform_input": (True, False)},
    ("torchvision", "inception_v3"): {"transform_input": (True, False)},
    ("timm", "fbnetc_100"): {"bn_eps": (1e-3, 1e-5)},
}

AUXILIARY_HEADS: dict[str, tuple[str, ...]] = {
    "googlenet": ("aux1.", "aux2."),
    "inception_v3": ("AuxLogits.",),
}
"""By torchvision's name: what a checkpoint holds of heads that only training uses."""


def published_options(library: str, name: str) -> dict[str, Any]:
    """What the library builds an architecture with where it loads its own weights.

    Args:
        library: "torchvision" or "timm".
        name: the library's, for timm with or without the tag of its weights.
    """
    return {option: value for option, (value, _) in _entry(library, name).items()}


def size_options(name: str, size: tuple[int, ...]) -> dict[str, Any]:
    """The options of torchvision architectures that are built for images of one (height, width)."""
    if name.startswith("vit_"):
        return {"image_size": size[0]}
    return {"input_size": size} if name.startswith("maxvit") else {}


def warn_of_assumptions(library: str, name: str, given: Mapping[str, Any]) -> None:
    """Say which options a checkpoint is taken to need; a file of tensors cannot tell.

    Args:
        library: "torchvision" or "timm".
        name: the library's.
        given: options that the caller has named, of which nothing needs to be said.
    """
    assumed = {k: v for k, v in _entry(library, name).items() if k not in given}
    if assumed:
        shown = ", ".join(f"{option}={value}" for option, (value, _) in assumed.items())
        other = {option: default for option, (_, default) in assumed.items()}
        warnings.warn(
            f"{name} is built with {shown}, as the published weights need it; for weights that "
            f"were trained without, pass load_teacher(..., options={other}) (--model-option on the "
            "command line)",
            SynqFastWarning,
            stacklevel=5,
        )


def _entry(library: str, name: str) -> dict[str, tuple[Any, Any]]:
    return _PUBLISHED.get((library, name.split(".")[0]), {})
