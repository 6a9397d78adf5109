"""The numbers of a frozen network as a small file holds them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from synq_fast.deployment.freezing import frozen_layers
from synq_fast.errors import CheckpointError
from synq_fast.ops import pack_codes, unpack_codes
from synq_fast.reference.pack_codes import packed_bytes
from synq_fast.runtime.out_of_memory import pass_on_memory_errors


def packed_state(frozen: fx.GraphModule) -> dict[str, Tensor]:
    """What ``fill_packed`` needs: the state dict, with streams of bits for stored codes."""
    kept = frozen.state_dict(keep_vars=True)
    state = {**kept, **{n: b for n, b in frozen.named_buffers() if n not in kept}}
    for name, layer in frozen_layers(frozen).items():
        del state[f"{name}.stored"]
        state[f"{name}.packed"] = pack_codes(layer.stored.flatten(1), layer.bits)
    return state


@torch.no_grad()
def fill_packed(file: str, frozen: fx.GraphModule, state: Mapping[str, Tensor]) -> None:
    """Give a frozen network of the right structure the numbers of a file, in place.

    Raises:
        CheckpointError: they do not fit it.
    """
    rest = dict(state)
    for name, layer in frozen_layers(frozen).items():
        length = layer.stored[:1].numel()
        packed = rest.pop(f"{name}.packed", None)
        wanted = (len(layer.stored), packed_bytes(length, layer.bits))
        if packed is None or packed.dtype != torch.uint8 or packed.shape != wanted:
            given = "none" if packed is None else f"{packed.dtype} of shape {tuple(packed.shape)}"
            raise CheckpointError(
                f"{file} does not fit the model: {name} has {layer.bits}-bit codes in torch.uint8 "
                f"of shape {wanted}, and the file {given}"
            )
        layer.take(unpack_codes(packed, layer.bits, length).view_as(layer.stored))
        on_grid = f"{name}.input_scale" in rest
        layer.input_scale = torch.zeros((), dtype=torch.float32) if on_grid else None
        bias = rest.get(f"{name}.bias", layer.bias)
        layer.bias = torch.empty_like(layer.bias, dtype=bias.dtype)
    try:
        for name, buffer in frozen.named_buffers():
            if name not in frozen.state_dict() and name in rest:
                buffer.copy_(rest.pop(name))
        missing, unexpected = frozen.load_state_dict(rest, strict=False)
    except RuntimeError as error:
        pass_on_memory_errors(error)
        raise CheckpointError(f"{file} does not fit the model: {error}") from error
    for layer in frozen_layers(frozen).values():
        layer.prepare()
    lost = [name for name in missing if name.rpartition(".")[2] != "stored"]
    if lost or unexpected:
        raise CheckpointError(
            f"{file} does not fit the model: it lacks {', '.join(lost) or 'nothing'} and has "
            f"{', '.join(unexpected) or 'nothing'} besides"
        )
