"""Networks that tools like this one once computed wrongly; every later change must pass them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 4
SHAPE = (3, 8, 8)


class Net(nn.Module):
    """conv-bn-relu-conv-bn-relu-pool-linear, with its joints open to change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], CHANNELS, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))

    def stem(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def body(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(x)))

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


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


class OptionalTargets(Net):
    def forward(self, x, targets=None):
        logits = super().forward(x)
        return logits if targets is None else functional.cross_entropy(logits, targets)


class Flag(Net):
    def forward(self, x, flag=False, scale: float = 2.0, *, deep=True):
        x = self.stem(x)
        if flag:
            return self.head(x)
        return self.head(self.body(x) * scale if deep else x)


class OptionalMask(Net):
    def forward(self, x, mask=None):
        if mask is not None:
            x = x * mask
        return super().forward(x)


class VariableArguments(Net):
    def forward(self, *images, **options):
        return super().forward(images[0]) * len(images)


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return functional.leaky_relu(super().forward(x), 0.2)


class NormTimesTwo(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class NormOfOwnArithmetic(nn.BatchNorm2d):
    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps)
        return x * scale[:, None, None] + self.bias[:, None, None]


class ShiftedRelu(nn.ReLU):
    def forward(self, x):
        return super().forward(x) - 0.5


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (var + 1e-5).sqrt()
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class SamePaddedConv(nn.Conv2d):
    """Padding from the input's size, as in timm's Conv2dSame."""

    def forward(self, x):
        rows, stride, kernel = x.shape[-2], self.stride[0], self.kernel_size[0]
        short = max((-(-rows // stride) - 1) * stride + kernel - rows, 0)
        if short > 0:
            x = functional.pad(x, [short // 2, short - short // 2] * 2)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0)


class InputDependentConv(nn.Conv2d):
    """Weights that follow the image cannot be quantized."""

    def forward(self, x):
        return functional.conv2d(x, self.weight * x.mean().sigmoid(), self.bias, padding=1)


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight * 0.5, self.bias)


def with_layer(**layers):
    def make():
        net = Net()
        for name, layer in layers.items():
            setattr(net, name, layer())
        return net

    return make


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


class BranchAddedTwice(Net):
    """One branch ends in two additions."""

    def body(self, x):
        branch = self.bn2(self.conv2(x))
        return functional.relu(branch + x) + (branch + x.detach())


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


class ShapeArithmetic(Net):
    def head(self, x):
        x = x.reshape(*x.shape[:2], x.shape[2:].numel())
        return self.fc(x.sum(-1) / x.shape[-1])


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


class SharedLayers(Net):
    def body(self, x):
        for _ in range(2):
            x = self.inplace(self.bn2(self.conv2(x)) + x)
        return x


class BatchInShape(Net):
    def head(self, x):
        batch, channels, rows, columns = x.shape
        x = x.view(batch, channels, rows * columns).mean(-1)
        return self.fc(x.reshape(x.size(0), -1))


class Loops(Net):
    def body(self, x):
        if x.shape[-1] > 4 and x.dim() == 4 and len(x.shape) == 4:
            pieces = [self.relu(piece) for piece in x.split(2, dim=1)]
            x = torch.cat(pieces, 1) if len(pieces) > 1 else x
        return super().body(x)


class Functions(Net):
    """The same network without modules."""

    def stem(self, x):
        x = functional.conv2d(x, self.conv1.weight, self.conv1.bias, padding=(1, 1))
        norm = self.bn1
        x = functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        return functional.relu(x, True)

    def head(self, x):
        return functional.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1), self.fc.weight)


class Upsamples(Net):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2)

    def body(self, x):
        return super().body(self.relu(self.up(x)))


class Caches(Net):
    """Keeps what it computes, as LeViT does with its attention biases."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(CHANNELS, 1, 1))
        self.cache: dict[str, Tensor] = {}

    def body(self, x):
        if "gain" not in self.cache:
            self.cache["gain"] = self.gain * 2
        return super().body(x * self.cache["gain"])


class AuxiliaryHead(Net):
    def __init__(self):
        super().__init__()
        self.aux = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def body(self, x):
        x = super().body(x)
        hint = self.aux(x)
        return x + 0 * hint.detach()


class Detached(Net):
    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def body(self, x):
        x = super().body(x)
        return x * self.gate(x).sigmoid().detach()


NETWORKS = {
    kind.__name__: kind
    for kind in (
        Net, ReluOfIdentity, ReluModuleOfIdentity, AddToAlias, NormalisesInPlace, OptionalTargets,
        Flag, OptionalMask, VariableArguments, AddsWithAlpha, MethodAddsWithAlpha,
        MethodAddsInPlaceWithAlpha, NamedAdd, AddsPooled, AddsParameter, AddsNumber, AddsItself,
        WritesToPart, WritesThroughView, ReadsOldView, WritesToHalves, SetsItemOfView,
        SharedReluOfPart, BranchAddedTwice, ShapeArithmetic, WritesTwice, WritesBeforeTap,
        StandardisedTwice, ReadsRawWeight, FlattensWhatItWrites, WritesToPartOfRelu,
        OpaqueWrite, SharedLayers, BatchInShape, Loops, Functions, Upsamples, Caches, AuxiliaryHead,
        Detached,
    )
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
}  # fmt: skip
"""By name, a function that makes the network; see ``network``."""


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of the table in evaluation mode, with statistics that matter."""
    from tests.tiny import randomize_statistics

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize_statistics(NETWORKS[name](), seed).eval()
