"""What a module does on random images: its classes, and whether hooks or chance change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synq_fast.errors import ModelError
from synq_fast.models.preparation import keep_plain_weights
from synq_fast.runtime.out_of_memory import pass_on_memory_errors
from synq_fast.runtime.seeding import generator_for, normal_images

_NORMS = {3: nn.BatchNorm1d, 2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_BATCH = 2


@torch.no_grad()
def settled_classes(module: nn.Module, name: str, shape: tuple[int, int, int]) -> int:
    """Run a module in evaluation mode, make it independent of hooks, and count its logits.

    ``SyncBatchNorm`` becomes the BatchNorm of its input's dimensions, and forward hooks are
    removed where they do not change the logits, both in place.

    Raises:
        ModelError: it does not run on images of this shape or is no classifier of at least two
            classes, hooks change its logits, or chance does.
    """
    images = _images(module, shape)
    dims: dict[nn.Module, int] = {}
    handles = [
        part.register_forward_pre_hook(lambda m, x: dims.__setitem__(m, x[0].dim()))
        for part in module.modules()
        if type(part) is nn.SyncBatchNorm
    ]
    first = _logits(module, name, images)
    for handle in handles:
        handle.remove()
    hooked = _remove_hooks(module)
    _replace_sync_norms(module, dims)
    if not _same(first, _logits(module, name, images)):
        again = _logits(module, name, images)
        if not _same(again, _logits(module, name, images)):
            raise ModelError(
                f"{name} gives other logits each time in evaluation mode: something in it draws "
                "random numbers, such as F.dropout(x) without training=self.training"
            )
        raise ModelError(
            f"{name} has forward hooks that change its logits ({', '.join(hooked)}), which "
            "quantization would lose: put what they do into the modules, or remove them"
        )
    return first.shape[1]


def _images(module: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    like = next((t for t in (*module.parameters(), *module.buffers())), None)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    images = normal_images(_BATCH, shape, generator_for(0, "probing"))
    return images.to(device="cpu" if like is None else like.device, dtype=dtype)


def _logits(module: nn.Module, name: str, images: Tensor) -> Tensor:
    try:
        output = module(images.clone())
    except Exception as error:
        pass_on_memory_errors(error)
        dtype = "" if images.dtype == torch.float32 else f" and {images.dtype}"
        raise ModelError(
            f"{name} does not run on an input of shape {tuple(images.shape)}{dtype}: {error}; "
            "check input_shape"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != _BATCH:
        raise ModelError(
            f"{name} is not a classifier: for {_BATCH} images it returned {_described(output)}, "
            "expected one tensor of logits of shape (2, classes); wrap the model so that forward "
            f"returns its logits{_example(output)}"
        )
    if output.shape[1] < 2:
        raise ModelError(
            f"{name} returns one logit z per image, whose softmax says nothing; wrap it so that "
            "it returns two logits, torch.cat([torch.zeros_like(z), z], 1)"
        )
    return output


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    kind = type(output).__name__
    fields = _fields(output)
    return f"{kind} with {', '.join(fields)}" if fields else kind


def _fields(output: Any) -> list[str]:
    if isinstance(output, Mapping):
        return [str(key) for key in output]
    if is_dataclass(output) or hasattr(output, "_fields"):
        return list(getattr(output, "_fields", None) or vars(output))
    return []


def _example(output: Any) -> str:
    fields = _fields(output)
    if isinstance(output, tuple) and not fields:
        part = "[0]"
    elif fields:
        chosen = next((f for f in fields if "logit" in f), fields[0])
        part = f'["{chosen}"]' if isinstance(output, Mapping) else f".{chosen}"
    else:
        return ""
    return f": def forward(self, x): return self.model(x){part}"


def _hooks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks:
            yield f"{name or 'the model'} ({type(part).__name__})", part


def _remove_hooks(module: nn.Module) -> list[str]:
    """Remove every forward hook; returns the modules that had one."""
    found = list(_hooks(module))
    for _, part in found:
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        keep_plain_weights(part)  # a hook may have computed them
    return [name for name, _ in found]


def _replace_sync_norms(module: nn.Module, dims: Mapping[nn.Module, int]) -> None:
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.SyncBatchNorm:
                if child not in made:
                    made[child] = _local(child, dims.get(child, 4))
                setattr(parent, name, made[child])


def _local(norm: nn.SyncBatchNorm, dim: int) -> nn.Module:
    local = _NORMS[dim](0, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    local.num_features = norm.num_features
    local._parameters, local._buffers = norm._parameters, norm._buffers
    return local.train(norm.training)


def _same(a: Tensor, b: Tensor) -> bool:
    # GPUs may add in another order each time; what hooks or chance change is larger.
    scale = float(a.nan_to_num().abs().amax())
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)
