"""Networks that overwrite values: in place, through views, in modules."""

import torch
from torch import nn
from torch.nn import functional

from tests.odd_networks.layers import StandardisedConv
from tests.odd_networks.net import CHANNELS, Net


class ReluOfIdentity(Net):
    def body(self, x):
        identity = self.bn2(self.conv2(x))
        out = functional.relu_(identity)
        return self.relu(out * 0.5 + identity)


class ReluModuleOfIdentity(Net):
    def body(self, x):
        identity = self.bn2(self.conv2(x))
        out = self.inplace(identity)
        return self.relu(self.conv2(out) + identity)


class AddToAlias(Net):
    def body(self, x):
        y = x
        y += 1
        return self.relu(self.bn2(self.conv2(x)))


class NormalisesInPlace(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("m", torch.tensor([0.1, 0.2, 0.3])[:, None, None])
        self.register_buffer("s", torch.tensor([0.5, 0.6, 0.7])[:, None, None])

    def stem(self, x):
        return super().stem(x.sub_(self.m).div_(self.s))


class WritesToPart(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        y[:, :2] += 1
        y[:, 3] = 0.5
        return self.relu(y)


class WritesThroughView(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        flat = y.flatten(1)
        flat.clamp_(min=-0.1)
        return self.relu(y + flat.view_as(y))


class ReadsOldView(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        rows = y.transpose(2, 3)
        y.mul_(2).sub_(1)
        return self.relu(rows + y)


class WritesToHalves(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        a, b = y[:, :2], y.narrow(1, 2, 2)
        a.relu_()
        b.add_(a)
        return torch.cat([y, y], 1)[:, ::2]


class SetsItemOfView(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        part = y[:, 1:]
        part[:, 0] = y[:, 0]
        return self.relu(y)


class SharedReluOfPart(Net):
    """One module in place, on a whole tensor and on a part of one that is read later."""

    def body(self, x):
        y = self.bn2(self.conv2(x))
        part = self.inplace(y[:, :2])
        whole = self.inplace(self.conv2(x))
        return y + whole + part.sum(1, keepdim=True)


class FlattensWhatItWrites(Net):
    """The layout of a sum decides whether ``flatten`` gives a view, through which it is written."""

    def body(self, x):
        turned = x.transpose(2, 3)
        y = self.bn2(turned + x)
        flat = y.flatten(1)
        flat.mul_(0.5)
        return y + flat.view_as(y)


class WritesToPartOfRelu(Net):
    """The backward of a module in place needs what it was given, which a later write changes."""

    def __init__(self):
        super().__init__()
        self.inplace = nn.ReLU6(inplace=True)

    def body(self, x):
        y = self.inplace(torch.cat([x - 0.5, self.conv2(x)], 1)[:, ::2])
        y[:, :2] += x[:, 2:4]
        return y


class StandardisedTwice(Net):
    """A layer with computed weights, called before and after a write."""

    def __init__(self):
        super().__init__()
        self.conv2 = StandardisedConv(CHANNELS, CHANNELS, 3, padding=1)

    def body(self, x):
        y = self.conv2(x)
        y[:, 1, ::2] = 0.25
        return self.bn2(self.conv2(y)) + y


class ReadsRawWeight(StandardisedTwice):
    """Beside the computed weight the layer's own one is read."""

    def body(self, x):
        return self.bn2(self.conv2(x)) * self.conv2.weight.abs().mean()


class WritesTwice(Net):
    def body(self, x):
        y = self.bn2(self.conv2(x))
        part = y[:, 1:3]
        part.exp_()
        y.add_(1)
        part.mul_(2)
        return y + part.sum(1, keepdim=True)


class WritesBeforeTap(Net):
    def body(self, x):
        y = self.conv2(x)
        z = self.bn2(y)
        y.zero_()
        return self.relu(z + y)


class InplaceLeaf(nn.Module):
    def forward(self, x):
        x.mul_(0.5)
        return x.sum(1, keepdim=True)


class OpaqueWrite(Net):
    """Traced through; see the test with it kept whole."""

    def __init__(self):
        super().__init__()
        self.leaf = InplaceLeaf()

    def body(self, x):
        y = self.bn2(self.conv2(x))
        total = self.leaf(y)
        return self.relu(y + total)
