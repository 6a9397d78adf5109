"""Reading a checkpoint into a model: safetensors, or tensors written by `torch.save`."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synq_fast.errors import CheckpointError
from synq_fast.models.state_dicts import found_state, named_as
from synq_fast.runtime.out_of_memory import pass_on_memory_errors
from synq_fast.storage.paths import user_path

_SHOWN = 5


def load_weights(
    module: nn.Module, path: str | os.PathLike[str], *, unused: tuple[str, ...] = ()
) -> None:
    """Load a checkpoint into `module`, strictly.

    Reads safetensors files and files of `torch.save` that hold only tensors and plain containers
    (`torch.load(weights_only=True)`; arbitrary pickled objects are refused). A dictionary wrapped
    as `{"state_dict": ...}` and the like is unwrapped, and the prefixes that `DataParallel`,
    `torch.compile`, `AveragedModel` and trainers add are removed. Of a file with trained and
    averaged weights the trained ones are taken, with a warning. Only BatchNorm's
    `num_batches_tracked` may be missing, since it does not enter the function.

    Args:
        module: the model to fill, in place.
        path: the checkpoint.
        unused: prefixes of tensors that the file may hold and the model does not need.

    Raises:
        CheckpointError: the file is missing, unreadable, holds pickled objects or NaN, or belongs
            to another model. `module` is unchanged then.
    """
    path = user_path(path)
    expected = module.state_dict()
    state = named_as(expected, found_state(_read(path), path), path)
    state = {k: v for k, v in state.items() if k in expected or not k.startswith(unused)}
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    _check_keys(expected, state, path, type(module).__name__)
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} tensors hold NaN or infinity, first {', '.join(bad[:_SHOWN])}; "
            "the training that wrote this checkpoint diverged, use an earlier one"
        )
    module.load_state_dict(state)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: the file does not exist or is a folder")
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with the length of its header, eight bytes, then the header's JSON.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}); it may be cut short, "
                "copy or download it again"
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if head[:2] == b"PK" or head[:1] == b"\x80":
            raise CheckpointError(
                f"{path} holds pickled Python objects, which are refused because loading them runs "
                "code from the file; save the weights alone with "
                "torch.save(model.state_dict(), path) or safetensors"
            ) from error
        raise CheckpointError(_unreadable(path, error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        pass_on_memory_errors(error)
        raise CheckpointError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{path} is not a readable checkpoint ({reason[0] if reason else type(error).__name__}); "
        "expected a safetensors file or a state dict written by torch.save"
    )


def _check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, model: str
) -> None:
    missing = [f"{k} {tuple(v.shape)}" for k, v in expected.items() if k not in state]
    # safetensors lists integers first: without sorting, all that is shown are batch counters.
    unknown = sorted(state.keys() - expected.keys(), key=lambda k: (k.endswith("tracked"), k))
    unexpected = [f"{k} {tuple(state[k].shape)}" for k in unknown]
    mismatched = [
        f"{k}: model {tuple(v.shape)}, file {tuple(state[k].shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    if not (missing or unexpected or mismatched):
        return
    lines = [f"{path} is not a checkpoint of this model ({model}):"]
    for title, entries in (
        ("missing from the file", missing),
        ("unknown to the model", unexpected),
        ("of another shape", mismatched),
    ):
        if entries:
            more = f", and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
            lines.append(f"  {len(entries)} {title}: {'; '.join(entries[:_SHOWN])}{more}")
    lines.append(
        "choose the model that the checkpoint was made with (its architecture and number of "
        "classes), or another checkpoint"
    )
    raise CheckpointError("\n".join(lines))
