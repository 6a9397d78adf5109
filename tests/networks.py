"""Networks that tools like this one once computed wrongly; every later change must pass them."""

import torch
from torch import nn

from tests.odd_networks import additions, forwards, writes
from tests.odd_networks.layers import (
    InputDependentConv,
    NormOfOwnArithmetic,
    NormTimesTwo,
    NormWithActivation,
    SamePaddedConv,
    ScaledLinear,
    ShiftedRelu,
    StandardisedConv,
)
from tests.odd_networks.net import CHANNELS, Net
from tests.tiny import randomize_statistics


def with_layer(**layers):
    def make():
        net = Net()
        for name, layer in layers.items():
            setattr(net, name, layer())
        return net

    return make


NETWORKS = {
    name: kind
    for module in (writes, additions, forwards)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Net)
} | {
    "norm with activation": with_layer(bn2=lambda: NormWithActivation(CHANNELS)),
    "norm times two": with_layer(bn1=lambda: NormTimesTwo(CHANNELS)),
    "norm of own arithmetic": with_layer(bn2=lambda: NormOfOwnArithmetic(CHANNELS)),
    "shifted relu": with_layer(relu=ShiftedRelu),
    "standardised convolution": with_layer(
        conv2=lambda: StandardisedConv(CHANNELS, CHANNELS, 3, padding=1)
    ),
    "padded convolution": with_layer(conv2=lambda: SamePaddedConv(CHANNELS, CHANNELS, 3, 2)),
    "weights from the image": with_layer(
        conv2=lambda: InputDependentConv(CHANNELS, CHANNELS, 3, padding=1)
    ),
    "scaled linear": with_layer(fc=lambda: ScaledLinear(CHANNELS, 3)),
}
"""By name, what makes a network: each class of those files, and the plain one with other layers."""


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of the table in evaluation mode, with statistics that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize_statistics(NETWORKS[name](), seed).eval()
