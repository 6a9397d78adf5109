"""Networks whose additions are no plain sum of two branches."""

import torch
from torch import nn
from torch.nn import functional

from tests.odd_networks.net import CHANNELS, Net


class AddsWithAlpha(Net):
    def body(self, x):
        return self.relu(torch.add(self.bn2(self.conv2(x)), x, alpha=3))


class MethodAddsWithAlpha(Net):
    def body(self, x):
        return self.relu(self.bn2(self.conv2(x)).add(x, alpha=3))


class MethodAddsInPlaceWithAlpha(Net):
    def body(self, x):
        return self.relu(self.bn2(self.conv2(x)).add_(x, alpha=3))


def add(a, b):
    return a - b


torch.fx.wrap("add")


class NamedAdd(Net):
    def body(self, x):
        return self.relu(add(self.bn2(self.conv2(x)), x))


class AddsPooled(Net):
    def body(self, x):
        return self.relu(self.bn2(self.conv2(x)) + x.mean((2, 3), keepdim=True))


class AddsParameter(Net):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.linspace(-1, 1, CHANNELS)[:, None, None])

    def body(self, x):
        return self.relu(self.bn2(self.conv2(x)) + self.shift)


class AddsNumber(Net):
    def body(self, x):
        return self.relu(self.bn2(self.conv2(x)) + 0.25)


class AddsItself(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        return self.relu(y + y)


class BranchAddedTwice(Net):
    """One branch ends in two additions."""

    def body(self, x):
        branch = self.bn2(self.conv2(x))
        return functional.relu(branch + x) + (branch + x.detach())
