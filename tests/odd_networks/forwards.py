"""Networks whose forward has its own arguments, shapes, control flow, calls or state."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.odd_networks.net import CHANNELS, Net


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


class ShapeArithmetic(Net):
    def head(self, x):
        x = x.reshape(*x.shape[:2], x.shape[2:].numel())
        return self.fc(x.sum(-1) / x.shape[-1])


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
