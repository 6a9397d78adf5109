"""Networks that go on with some of an image's patches."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.graph.dropping import with_chosen_patches
from synq_fast.graph.structure import find_structure
from synq_fast.graph.trace import trace
from tests.tiny import tiny_images, tiny_net
from tests.transformers import CLASSES, HEADS, PATCH, SHAPE, SIDE, WIDTH, TinyViT

GRID = SIDE // PATCH
PATCHES = GRID**2
KEPT = torch.tensor([[0, 2, 3, 7], [1, 4, 6, 8]])


def vit(kind=TinyViT):
    torch.manual_seed(4)
    return kind().eval().requires_grad_(False)


def images(count=2):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def chosen(network, shape=SHAPE):
    graph = trace(network, torch.zeros(2, *shape))
    return with_chosen_patches(graph, find_structure(graph, torch.zeros(2, *shape)).attentions)


def masked(network: TinyViT, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """All tokens throughout, of which attention sees those that are kept: float64."""
    network, x = network.double(), x.double()
    seen = torch.zeros(len(x), 1 + PATCHES, dtype=torch.bool)
    seen[:, 0] = True
    for row, places in zip(seen, kept, strict=True):
        row[1 + places] = True
    x = network.patches(x).flatten(2).transpose(1, 2)
    x = torch.cat([network.first.expand(len(x), -1, -1), x], 1) + network.places
    for layer in network.layers:
        parts = layer.attention.qkv(layer.norm1(x)).chunk(3, -1)
        q, k, v = (p.unflatten(2, (HEADS, -1)).transpose(1, 2) for p in parts)
        logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(WIDTH // HEADS)
        logits = logits.masked_fill(~seen[:, None, None], -math.inf)
        y = torch.einsum("bhnm,bhmd->bnhd", logits.softmax(-1), v).flatten(2)
        x = x + layer.attention.proj(y)
        x = x + layer.fc2(functional.gelu(layer.fc1(layer.norm2(x))))
    logits = network.head(network.norm(x)[:, 0])
    network.float()
    return logits


def test_the_class_token_sees_the_chosen_patches_alone():
    network, x = vit(), images()
    graph, chooser = chosen(network)
    assert (chooser.before, chooser.side, chooser.pixels) == (1, GRID, PATCH)
    chooser.chosen = KEPT
    expected = masked(network, x, KEPT)
    torch.testing.assert_close(graph(x).double(), expected, rtol=1e-4, atol=1e-5)
    everything = torch.arange(PATCHES).expand(2, -1)
    assert (expected - masked(network, x, everything)).abs().max() > 1e-3


def test_without_a_choice_it_is_the_same_network():
    network, x = vit(), images(5)
    graph, chooser = chosen(network)
    assert chooser.chosen is None
    assert torch.equal(graph(x), trace(network, torch.zeros(2, *SHAPE))(x))
    chooser.chosen = KEPT[[0, 1, 0, 1, 1]]
    torch.testing.assert_close(
        graph(x).double(), masked(network, x, chooser.chosen), rtol=1e-4, atol=1e-5
    )


def test_pixels_of_other_patches_have_no_gradient():
    graph, chooser = chosen(vit())
    chooser.chosen = KEPT
    x = images().requires_grad_()
    graph(x).square().sum().backward()
    moved = functional.max_pool2d(x.grad.abs().amax(1, keepdim=True), PATCH).flatten(1) > 0
    assert [row.nonzero().flatten().tolist() for row in moved] == KEPT.tolist()


class Module(TinyViT):
    """With torch's attention, whose tokens come first."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def tokens(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places

    def forward(self, x):
        x = self.tokens(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x)[:, 0])


class Pooled(TinyViT):
    """Without a class token."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places[:, 1:]
        return self.head(self.norm(self.layers(x)).mean(1))


def test_torch_attention_and_no_class_token():
    x = images()
    network = vit(Module)
    graph, chooser = chosen(network)
    chooser.chosen = KEPT
    tokens = network.tokens(x)
    few = torch.stack([t[[0, *(1 + k).tolist()]] for t, k in zip(tokens, KEPT, strict=True)])
    few = few + network.attention(few, few, few, need_weights=False)[0]
    torch.testing.assert_close(graph(x), network.head(network.norm(few)[:, 0]))

    network = vit(Pooled)
    graph, chooser = chosen(network)
    assert chooser.before == 0
    chooser.chosen = KEPT
    tokens = network.patches(x).flatten(2).transpose(1, 2) + network.places[:, 1:]
    few = torch.stack([t[k] for t, k in zip(tokens, KEPT, strict=True)])
    # A layer knows no number of tokens.
    expected = network.head(network.norm(network.layers(few)).mean(1))
    torch.testing.assert_close(graph(x), expected)


class Windows(TinyViT):
    """Attention within each row of patches."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.layers(x.reshape(-1, GRID, WIDTH)).reshape(-1, PATCHES, WIDTH)
        return self.head(x.mean(1))


class Biased(TinyViT):
    """A position is added again between the layers."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layers[1](self.layers[0](x) + self.places)[:, 0])


class Weighed(TinyViT):
    """Patches are told apart by their order alone: any number of them runs."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 1])


class Columns(TinyViT):
    """Patches column by column."""

    def forward(self, x):
        x = self.patches(x).transpose(2, 3).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, 0])


class Last(TinyViT):
    """The class token comes last."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.first.expand(x.shape[0], -1, -1)], 1) + self.places
        return self.head(self.norm(self.layers(x))[:, -1])


class Beside(TinyViT):
    """The image is used again behind the attentions."""

    def forward(self, x):
        return super().forward(x) + x.mean((2, 3))[:, :CLASSES]


class Merged(TinyViT):
    """The second layer is over fewer tokens."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layers[1](self.layers[0](x)[:, :5])[:, 0])


REFUSED = {
    Windows: "its attention softmax is over windows",
    Biased: "what follows add depends on the place of each patch.*must match the size",
    Weighed: "what follows add depends on the place of each patch",
    Columns: "its tokens do not follow the patches of an image row by row",
    Last: "its tokens do not follow the patches of an image row by row",
    Beside: "no moment at which its 10 tokens are all that it knows",
    Merged: "its attentions are over 5, 10 tokens, and not over the same patches",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_needs_every_patch_is_refused(kind, capfd):
    with pytest.raises(ModelError, match=REFUSED[kind]):
        chosen(vit(kind))
    assert capfd.readouterr().err == ""


def test_networks_without_patches_are_refused():
    net = tiny_net().requires_grad_(False)
    graph = trace(net, tiny_images(2))
    with pytest.raises(ModelError, match="no attention that could be found"):
        with_chosen_patches(graph, find_structure(graph, tiny_images(2)).attentions)


def test_patches_that_are_no_squares_are_refused():
    network = vit()
    network.patches = nn.Conv2d(3, WIDTH, (4, 8), stride=(4, 8))
    with pytest.raises(ModelError, match="9 patches are no grid of equal squares in 12 x 24"):
        chosen(network.requires_grad_(False), (3, 12, 24))
