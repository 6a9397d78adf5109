"""A user's module as a plain one: copied, out of its wrappers, its weights as parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from synq_fast.errors import ModelError
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

_SHOWN = 5
# By the start of a class's module: what it is part of, and what to pass instead.
_QUANTIZED = {
    "torch.ao.": "torch.ao",
    "torch.nn.quantized": "torch.ao",
    "torch.nn.qat": "torch.ao",
    "torchao.": "torchao",
    "bitsandbytes.": "bitsandbytes",
    "synq_fast.quant": "synq-fast",
}


def plain_copy(model: Any) -> nn.Module:
    """A copy of a module without DataParallel, torch.compile and the like around any part of it.

    Raises:
        ModelError: it is no module, or one that cannot be traced, has no values yet, or is
            quantized; says what it is and what to pass instead.
    """
    _refuse_other_objects(model)
    wrapper: nn.Module = model
    while (inside := _wrapped(wrapper)) is not None:
        wrapper = inside
    _refuse_unusable(wrapper)
    memo: dict[int, Any] = {}
    try:
        for part in reversed(list(wrapper.modules())):
            # Weights that a hook computes are no leaves, which deepcopy refuses.
            for value in (*vars(part).values(), *part._buffers.values()):
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
            inner = _wrapped(part)
            if inner is not None:
                memo[id(part)] = copy.deepcopy(inner, memo)
        made: nn.Module = copy.deepcopy(wrapper, memo)
    except Exception as error:
        pass_on_memory_errors(error)
        raise ModelError(
            f"{type(wrapper).__name__} cannot be copied ({error}); keep only modules, parameters "
            "and buffers in it (handles, locks and tensors with a history do not copy)"
        ) from error
    return made


@torch.no_grad()
def without_wrapped_weights(module: nn.Module) -> None:
    """Turn computed weights into plain parameters, in place.

    Those of ``torch.nn.utils.prune``, of ``weight_norm`` and ``spectral_norm`` in their old and
    new forms, and of any parametrization; the values are those of evaluation mode.
    """
    module.eval()
    for name, part in module.named_modules():
        try:
            for key, hook in list(part._forward_pre_hooks.items()):
                value = _hooked_weight(hook, part)
                if value is not None:
                    del part._forward_pre_hooks[key]
                    _forget(part, hook)
                    _set(part, value[0], value[1])
            if parametrize.is_parametrized(part):
                _bake_parametrizations(part)
            if not part._forward_pre_hooks:
                keep_plain_weights(part)
        except Exception as error:
            pass_on_memory_errors(error)
            raise ModelError(
                f"the weights of {name or 'the model'} ({type(part).__name__}) are computed and "
                f"cannot be made plain ({error}); remove the parametrization before quantizing"
            ) from error


def keep_plain_weights(part: nn.Module) -> None:
    """Make parameters of a weight and a bias that somebody has set as plain tensors."""
    for name in ("weight", "bias"):
        value = vars(part).get(name)
        if isinstance(value, Tensor):
            _set(part, name, value)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds that adds nothing to the function of one device."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        inner: nn.Module = module.module
        return inner
    # The class of torch.compile's modules lies in torch._dynamo, which is slow to import.
    if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        return module._modules["_orig_mod"]
    return None


def _refuse_other_objects(model: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise ModelError(
            "the model is TorchScript (torch.jit), which has no Python modules left to quantize; "
            "pass the nn.Module that was scripted or traced"
        )
    if isinstance(model, nn.Module):
        return
    kind = type(model).__name__
    if isinstance(model, torch.export.ExportedProgram):
        hint = "it is a torch.export program: pass the nn.Module that was exported"
    elif isinstance(model, Mapping):
        hint = "a state dict goes into weights=FILE beside the model: save it with torch.save"
    elif isinstance(model, type):
        kind, hint = f"the class {model.__name__}", f"pass an instance: {model.__name__}(...)"
    elif callable(model):
        hint = "wrap a function as the forward of an nn.Module"
    else:
        hint = ""
    raise ModelError(
        f"a teacher is given by name, import string or nn.Module, got {kind}"
        f"{'; ' if hint else ''}{hint}"
    )


def _refuse_unusable(module: nn.Module) -> None:
    model = type(module).__name__
    lazy = [name for name, value in _tensors(module) if is_lazy(value)]
    if lazy:
        raise ModelError(
            f"{model} has lazy layers without weights yet ({_list(lazy)}): run it once on an "
            "image, or load a checkpoint into it, before quantizing"
        )
    for name, part in module.named_modules():
        kind, where = type(part).__name__, type(part).__module__
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{name} of {model} is TorchScript (torch.jit), which cannot be quantized; use the "
                "nn.Module that was scripted or traced"
            )
        by = next((title for start, title in _QUANTIZED.items() if where.startswith(start)), None)
        if by is not None:
            raise ModelError(
                f"{model} is quantized, or prepared for it: {name or 'it'} is {by}'s {kind}; pass "
                "the full-precision model that it was made from"
            )
        if "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            raise ModelError(
                f"{name or model} is sharded ({kind}): gather the full weights first "
                "(get_model_state_dict with full_state_dict=True) and load them into a plain module"
            )
        if "forward" in vars(part) and (part is module or where.startswith("torch.nn.")):
            raise ModelError(
                f"{name or model} ({kind}) has a forward of its own instance, which neither "
                "tracing nor quantization sees; put it into a class"
            )
    if isinstance(module, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        raise ModelError(
            "the model is a graph of ATen ops (torch.export or torch.compile made it), without "
            "layers to quantize; pass the nn.Module that was exported"
        )
    _refuse_tensors(module, model)


def _refuse_tensors(module: nn.Module, model: str) -> None:
    tensors = list(_tensors(module))
    meta = [name for name, value in tensors if value.is_meta]
    if meta:
        raise ModelError(
            f"{len(meta)} tensors of {model} are on the meta device, without values "
            f"({_list(meta)}): build it on a real device and load its weights"
        )
    devices = sorted({str(value.device) for _, value in tensors})
    if len(devices) > 1:
        raise ModelError(
            f"{model} lies on several devices ({', '.join(devices)}): move it to one with .to(...)"
        )
    packed = [
        name
        for name, value in tensors
        if value.is_quantized or type(value).__module__.startswith(("torchao.", "bitsandbytes."))
    ]
    if packed:
        raise ModelError(
            f"{model} is quantized already: {_list(packed)}; pass the full-precision model that "
            "it was made from"
        )
    split = [name for name, value in tensors if type(value).__name__ == "DTensor"]
    if split:
        raise ModelError(
            f"{model} holds distributed tensors ({_list(split)}): gather them with .full_tensor()"
        )
    odd = [name for name, value in tensors if value.is_complex()]
    if odd:
        raise ModelError(
            f"{model} holds complex numbers ({_list(odd)}); only real networks can be quantized"
        )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _list(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _hooked_weight(hook: Callable[..., Any], part: nn.Module) -> tuple[str, Tensor] | None:
    """Name and value of the parameter that one of torch's own pre-forward hooks computes."""
    if isinstance(hook, prune.BasePruningMethod):
        return str(hook._tensor_name), hook.apply_mask(part)
    if isinstance(hook, WeightNorm):
        return hook.name, hook.compute_weight(part)
    if isinstance(hook, SpectralNorm):
        return hook.name, hook.compute_weight(part, do_power_iteration=False)
    return None


def _forget(part: nn.Module, hook: Any) -> None:
    """Remove what a hook computed its parameter from."""
    name = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
    for suffix in ("_orig", "_mask", "_g", "_v", "_u"):
        part._parameters.pop(name + suffix, None)
        part._buffers.pop(name + suffix, None)
    for hooks in (part._state_dict_hooks, part._load_state_dict_pre_hooks):
        for key, other in list(hooks.items()):
            if "SpectralNorm" in type(getattr(other, "hook", other)).__name__:
                del hooks[key]


def _bake_parametrizations(part: nn.Module) -> None:
    parametrizations = part.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(part, name) for name in parametrizations}
    trained = {
        name: any(p is not None for p in parametrizations[name]._parameters.values())
        for name in values
    }
    # Not by remove_parametrizations: the class with the properties is also that of the original.
    part.__class__ = type(part).__bases__[0]
    del part._modules["parametrizations"]
    for name, value in values.items():
        if trained[name]:
            _set(part, name, value)
        else:
            part.register_buffer(name, value.detach().clone())


def _set(part: nn.Module, name: str, value: Tensor) -> None:
    vars(part).pop(name, None)
    part.register_parameter(name, nn.Parameter(value.detach().clone()))
