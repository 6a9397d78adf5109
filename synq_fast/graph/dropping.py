"""Networks of patches that can go on with some of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.graph.attention import Attention
from synq_fast.graph.blocks import single_values, subnetwork
from synq_fast.graph.nodes import TRACED_IMAGES, called_name, copied, shape_of
from synq_fast.graph.patches import before_patches
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

_SHAPING = frozenset({"reshape", "view", "expand", "unflatten", "broadcast_to", "repeat"})
_ALIKE = 1e-3


class ChosenPatches(nn.Module):
    """Lets through the tokens before the patches, and of the patches those that are chosen."""

    def __init__(self, before: int, side: int, pixels: int) -> None:
        """Let through everything.

        Args:
            before: class tokens and registers, which come first.
            side: of the grid of patches, which follow row by row.
            pixels: side of a patch.
        """
        super().__init__()
        self.before, self.side, self.pixels = before, side, pixels
        self.chosen: Tensor | None = None
        """(B, k) int64: places of the patches of each image in the grid; None: all."""

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, before + k, C) of tokens (B, before + side * side, C)."""
        if self.chosen is None:
            return x
        first = torch.arange(self.before, device=x.device).expand(len(x), -1)
        tokens = torch.cat([first, self.chosen + self.before], 1)
        return x.gather(1, tokens[..., None].expand(-1, -1, x.shape[2]))


def with_chosen_patches(
    graph_module: fx.GraphModule, attentions: Sequence[Attention]
) -> tuple[fx.GraphModule, ChosenPatches]:
    """A copy of a network, parameters shared, and what chooses the patches that it goes on with.

    They are chosen where the tokens, with their positions, are the one value alive before the first
    attention. Sizes that tracing made of the number of tokens follow it from there on.

    Args:
        graph_module: the traced network.
        attentions: of it.

    Raises:
        ModelError: its attentions are over windows or over tokens of several scales, its tokens are
            no grid of patches, or what follows depends on a patch's place; says which.
    """
    tokens = _tokens(graph_module, attentions)
    before = before_patches(tokens)
    side = math.isqrt(tokens - before)
    height, width = _image_shape(graph_module)[2:]
    if height != width or height % side:
        raise ModelError(
            f"its {tokens - before} patches are no grid of equal squares in {height} x {width} "
            f"pixels"
        )
    result = copied(graph_module)
    entry = _entry(result, attentions[0], tokens)
    chooser = ChosenPatches(before, side, height // side)
    result.add_submodule("chosen_patches", chooser)
    with result.graph.inserting_after(entry):
        choice = result.graph.call_module("chosen_patches", (entry,))
    choice.meta = dict(entry.meta)
    entry.replace_all_uses_with(choice, delete_user_cb=lambda user: user is not choice)
    _follow(result, choice, tokens, before)
    result.recompile()
    result.train(graph_module.training)
    _check(result, chooser, entry.name)
    return result, chooser


def _images(graph_module: fx.GraphModule) -> fx.Node:
    images: fx.Node = next(node for node in graph_module.graph.nodes if node.op == "placeholder")
    return images


def _image_shape(graph_module: fx.GraphModule) -> torch.Size:
    shape = shape_of(_images(graph_module))
    assert shape is not None
    return shape


def _tokens(graph_module: fx.GraphModule, attentions: Sequence[Attention]) -> int:
    """How many tokens each attention compares with each other."""
    if not attentions:
        raise ModelError("it has no attention that could be found")
    nodes = {node.name: node for node in graph_module.graph.nodes}
    shapes = {a.probabilities: shape_of(nodes[a.probabilities]) for a in attentions}
    sizes = set()
    for name, shape in shapes.items():
        if shape is None or len(shape) != 4 or shape[0] != TRACED_IMAGES:
            raise ModelError(f"its attention {name} is over windows, which a dropped patch breaks")
        if shape[2] != shape[3]:
            raise ModelError(f"its attention {name} is of {shape[2]} tokens to {shape[3]} others")
        sizes.add(shape[3])
    if len(sizes) > 1:
        raise ModelError(
            f"its attentions are over {', '.join(map(str, sorted(sizes)))} tokens, and not over "
            f"the same patches throughout"
        )
    return sizes.pop()


def _entry(graph_module: fx.GraphModule, attention: Attention, tokens: int) -> fx.Node:
    """The last value (B, tokens, C) that is alone alive before an attention."""
    places = {node.name: place for place, node in enumerate(graph_module.graph.nodes)}
    end = places[attention.logits]
    for node in reversed(single_values(graph_module)):
        shape = shape_of(node)
        is_tokens = shape is not None and len(shape) == 3 and shape[1] == tokens
        if places[node.name] < end and is_tokens:
            return node
    raise ModelError(
        f"before its first attention there is no moment at which its {tokens} tokens are all that "
        f"it knows of an image"
    )


def _follow(graph_module: fx.GraphModule, choice: fx.Node, tokens: int, before: int) -> None:
    """Let sizes that name the number of tokens, or of patches, name that of the chosen ones."""
    graph = graph_module.graph
    later = list(graph.nodes)
    later = later[later.index(choice) + 1 :]
    with graph.inserting_after(choice):
        shape = graph.call_function(getattr, (choice, "shape"))
    with graph.inserting_after(shape):
        count = graph.call_function(operator.getitem, (shape, 1))
    sizes: dict[int, fx.Node] = {tokens: count}
    if before:
        with graph.inserting_after(count):
            sizes[tokens - before] = graph.call_function(operator.sub, (count, before))

    def renamed(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(renamed, value))
        return sizes.get(value, value) if type(value) is int else value

    for node in later:
        if called_name(node) in _SHAPING:
            node.args = (node.args[0], *map(renamed, node.args[1:]))
            node.kwargs = {name: renamed(value) for name, value in node.kwargs.items()}


def _check(graph_module: fx.GraphModule, chooser: ChosenPatches, entry: str) -> None:
    """Refuse a network that is another one when its patches are fewer or come in another order."""
    parameter = next(graph_module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    generator = torch.Generator().manual_seed(0)
    size = _image_shape(graph_module)
    images = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").to(device)
    _check_grid(graph_module, chooser, entry, images)
    patches = chooser.side**2
    # One cycle through all places, so that no patch stays where it is.
    cycle = torch.randperm(patches, generator=generator, device="cpu")
    order = torch.empty_like(cycle).index_copy(0, cycle, cycle.roll(1)).to(device)
    order = order.expand(len(images), -1)
    reason = (
        f"what follows {entry} depends on the place of each patch, as with a bias or a rotation "
        f"by position"
    )
    try:
        with torch.no_grad():
            whole = graph_module.forward(images)
            chooser.chosen = order
            mixed = graph_module.forward(images)
            chooser.chosen = order[:, : (patches + 1) // 2]
            few = graph_module.forward(images)
    except (RuntimeError, IndexError, ValueError) as error:
        pass_on_memory_errors(error)
        raise ModelError(f"{reason} ({str(error).splitlines()[0]})") from error
    finally:
        chooser.chosen = None
    largest = whole.abs().max().clamp_min(1e-6)
    if few.shape != whole.shape or (mixed - whole).abs().max() > _ALIKE * largest:
        raise ModelError(reason)


@torch.enable_grad()
def _check_grid(
    graph_module: fx.GraphModule, chooser: ChosenPatches, entry: str, images: Tensor
) -> None:
    """Refuse tokens that do not see the pixels of their place, row by row."""
    inputs = images.clone().requires_grad_()
    tokens = subnetwork(graph_module, _images(graph_module).name, entry)(inputs)
    place = chooser.side - 1  # the end of the first row: another place in every other order
    token = tokens[:, chooser.before + place]
    (gradient,) = torch.autograd.grad(token.square().sum(), inputs)
    energy = gradient.square().sum(1, keepdim=True)
    found = functional.avg_pool2d(energy, chooser.pixels).flatten(1)
    if (found.argmax(1) != place).any():
        raise ModelError("its tokens do not follow the patches of an image row by row")
