"""Scales and shifts of single channels, from LayerNorms to what reads them."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.graph.norm_folding import (
    fold,
    foldable_norms,
    folded_like,
    has_foldable_norms,
    with_foldable_norms,
)
from synq_fast.graph.rotation import rotated
from synq_fast.graph.taps import Tapped
from synq_fast.graph.trace import trace
from tests.transformers import SHAPE, WIDTH, TinyViT


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def timm_network(name, **options):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=5, **options)


NETWORKS = {
    "small": (TinyViT, 12, 5, 0),
    "torchvision": (
        lambda: torchvision.models.VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=5),
        24,
        5,
        0,
    ),
    "timm": (
        lambda: timm_network(
            "deit_tiny_distilled_patch16_224",
            img_size=16,
            patch_size=4,
            depth=2,
            embed_dim=24,
            num_heads=2,
        ),
        16,
        5,
        0,
    ),
    # Shifted windows, merged patches without a bias, a mean before the classifier; the norm behind
    # the patches feeds the residual stream.
    "torchvision's Swin": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 12, [2, 2], [2, 2], [2, 2], num_classes=5
        ),
        32,
        10,
        1,
    ),
    "timm's Swin": (
        lambda: timm_network(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=2,
            depths=(2, 2),
            embed_dim=12,
            num_heads=(2, 2),
        ),
        32,
        10,
        1,
    ),
}


def fold_all(graph, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for norm in foldable_norms(graph)[0]:
        channels = graph.get_submodule(norm.norm).weight.numel()
        scale = torch.rand(channels, generator=generator, dtype=torch.float64) * 2 + 0.25
        fold(graph, norm, scale, torch.randn(channels, generator=generator).double())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_network_too(name):
    build, side, count, others = NETWORKS[name]
    network, x = filled(build()), torch.randn(3, 3, side, side)
    before = copy.deepcopy(network.state_dict())
    graph = trace(network, x[:2])
    folded = with_foldable_norms(graph, all_of_them=False)
    assert has_foldable_norms(folded) and not has_foldable_norms(graph)
    found, left = foldable_norms(folded)
    assert (len(found), len(left)) == (count, others)
    assert found == foldable_norms(with_foldable_norms(folded, all_of_them=False))[0]
    with torch.no_grad():
        expected = network(x)
        values = Tapped(folded, [found[0].call])(x).features[0]
        assert torch.allclose(folded(x), expected, atol=1e-5)
        fold_all(folded)
        moved = Tapped(folded, [found[0].call])(x).features[0]
        assert torch.allclose(folded(x), expected, atol=1e-4 * float(expected.abs().max()))
        assert torch.allclose(graph(x), expected, atol=1e-5)
    scale, shift = folded.get_submodule(found[0].norm).fold
    assert scale.min() > 0.2 and shift.abs().max() > 0.5
    torch.testing.assert_close(moved, values / scale - shift, atol=1e-4, rtol=1e-4)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_fold_is_that_of_the_formula():
    graph = with_foldable_norms(trace(filled(TinyViT()), torch.randn(2, *SHAPE)), all_of_them=True)
    norm = next(n for n in foldable_norms(graph)[0] if n.norm == "layers.1.norm2")
    assert norm.readers == ("layers.1.fc1",)
    module, layer = graph.get_submodule(norm.norm), graph.get_submodule("layers.1.fc1")
    scale = torch.rand(WIDTH).double() + 0.5
    shift = torch.randn(WIDTH).double()
    gamma, beta, weight, bias = (
        p.detach().double() for p in (module.weight, module.bias, layer.weight, layer.bias)
    )
    fold(graph, norm, scale, shift)
    expected = {
        module.weight: gamma / scale,
        module.bias: beta / scale - shift,
        layer.weight: weight @ scale.diag(),
        layer.bias: bias + weight @ scale.diag() @ shift,
    }
    for parameter, value in expected.items():
        torch.testing.assert_close(parameter.double(), value, atol=0, rtol=2e-6)
    fold(graph, norm, 2 * torch.ones(WIDTH).double(), torch.ones(WIDTH).double())
    torch.testing.assert_close(module.fold[0].double(), 2 * scale, atol=0, rtol=1e-6)
    torch.testing.assert_close(module.fold[1].double(), shift / 2 + 1, atol=1e-6, rtol=1e-6)


def test_a_float_network_follows_the_folds_of_another():
    x = torch.randn(3, *SHAPE)
    graph = with_foldable_norms(trace(filled(TinyViT()), x[:2]), all_of_them=True)
    student = copy.deepcopy(graph)
    assert folded_like(graph, student) is graph
    assert folded_like(graph, nn.Linear(2, 2)) is graph
    fold_all(student)
    before = copy.deepcopy(graph.state_dict())
    like = folded_like(graph, student)
    names = [norm.call for norm in foldable_norms(graph)[0]]
    with torch.no_grad():
        theirs, ours = (Tapped(network, names)(x).features for network in (like, student))
        for one, other in zip(theirs, ours, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert torch.allclose(like(x), graph(x), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())


class Base(TinyViT):
    """What stands between the last norm and the classifier."""

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.norm(self.layers(x)))

    def last(self, x):
        return self.head(x[:, 0])


class AlsoSummed(Base):
    def last(self, x):
        return self.head(x[:, 0]) + x.mean()


class Multiplied(Base):
    def last(self, x):
        return self.head(x[:, 0] * 2)


class Padded(Base):
    def last(self, x):
        return self.head(functional.pad(x, (0, 0, 1, 0))).mean(1)


class RolledChannels(Base):
    def last(self, x):
        return self.head(x.roll(1, -1)[:, 0])


class Reversed(Base):
    def last(self, x):
        return self.head(x[..., [7, 6, 5, 4, 3, 2, 1, 0]][:, 0])


class Mixed(Base):
    """As many tokens as channels, which a reshape would take for each other."""

    def last(self, x):
        return self.head(x[:, :WIDTH].transpose(1, 2)[:, 0])


class Unbound(Base):
    def last(self, x):
        first, *_ = x.unbind(1)
        return self.head(first)


class Twice(Base):
    def last(self, x):
        return self.head(x[:, 0]) + self.head(x[:, 1])


class NormTwice(Base):
    def last(self, x):
        return self.head(x[:, 0]) + self.norm(x).mean((1, 2))[:, None]


class Tied(Base):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(WIDTH, 3)
        self.other.weight = self.head.weight

    def last(self, x):
        return self.head(x[:, 0]) + self.other(x[:, 0])


class ReadWeight(Base):
    def last(self, x):
        return self.head(x[:, 0]) + self.head.weight.sum()


class Convolved(Base):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, 3, 1)

    def last(self, x):
        return self.conv(x.transpose(1, 2)).mean(2)


class OwnNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) * 2


class OfItsOwn(Base):
    def __init__(self):
        super().__init__()
        self.norm = OwnNorm(WIDTH)

    def last(self, x):
        return self.head(x[:, 0])


READS = r"\w+ reads it, and is no linear layer"
REFUSED = [
    (AlsoSummed, f"mean{READS[3:]}"),
    (Multiplied, f"mul{READS}"),
    (Padded, f"pad{READS[3:]}"),
    (RolledChannels, f"roll{READS[3:]}"),
    (Reversed, f"getitem{READS}"),
    (Mixed, f"getitem{READS}"),
    (Unbound, f"unbind{READS}"),
    (Twice, "head is called several times"),
    (NormTwice, READS),
    (Tied, r"\w+ shares its parameters"),
    (ReadWeight, "head shares its parameters"),
    (Convolved, f"conv{READS[3:]}"),
    (OfItsOwn, f"mul{READS}"),
]


@pytest.mark.parametrize(("kind", "reason"), REFUSED)
def test_what_cannot_be_proved_is_left_alone_or_refused_by_name(kind, reason):
    network = filled(kind())
    graph = trace(network, torch.randn(2, *SHAPE))
    found, others = foldable_norms(graph)
    assert len(found) == 4 and all(n.norm.startswith("layers") for n in found)
    assert any(re.fullmatch(f"{reason}.*", given) for given in others.values()), others
    with pytest.raises(ModelError, match=r'not every LayerNorm.*fold_norms = "never" or "auto"'):
        with_foldable_norms(graph, all_of_them=True)
    left = with_foldable_norms(graph, all_of_them=False)
    fold_all(left)
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(left(x), network(x), atol=1e-4, rtol=1e-4)


def pooled(x):
    square = x.reshape(-1, 3, 3, WIDTH).roll(1, 1)[:, :, 1:]
    return functional.adaptive_avg_pool2d(square.permute(0, 3, 1, 2), 1).flatten(1)


MOVED = {
    "pooled": pooled,
    "kept": lambda x: functional.pad(x, (0, 0, 0, 0)).mean(1, keepdim=True).squeeze(1),
    "unsqueezed": lambda x: x.unsqueeze(1).contiguous().transpose(1, -1)[:, :, -1, 0],
    "selected": lambda x: x.select(1, 3),
    "indexed": lambda x: x[..., 2:, :][:, 0],
    "sized": lambda x: x.view(x.shape[0], -1, x.size(-1))[:, 1],
    "zeros beside": lambda x: x[:, 0] if x.new_zeros(2).dim() else x,
    "each": lambda x: x,
}


@pytest.mark.parametrize("name", MOVED)
def test_channels_are_followed_through_moves_and_means(name):
    class Moved(Base):
        def last(self, x):
            y = self.head(MOVED[name](x))
            return y.mean(1) if y.dim() == 3 else y

    network = filled(Moved())
    x = torch.randn(3, *SHAPE)
    folded = with_foldable_norms(trace(network, x[:2]), all_of_them=True)
    fold_all(folded)
    assert folded.norm.fold[1].abs().max() > 0.5
    torch.testing.assert_close(folded(x), network(x), atol=1e-4, rtol=1e-4)


class Bare(Base):
    """A norm without parameters, and one without a summand; readers without a bias."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.layers[0].norm1 = nn.LayerNorm(WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 3, bias=False)


def test_norms_and_readers_get_what_they_lack():
    network = filled(Bare())
    x = torch.randn(3, *SHAPE)
    folded = with_foldable_norms(trace(network, x[:2]), all_of_them=True)
    fold_all(folded)
    torch.testing.assert_close(folded(x), network(x), atol=1e-4, rtol=1e-4)
    assert network.head.bias is None and network.norm.weight is None


def test_rotated_networks_and_those_without_norms_have_none():
    graph = trace(filled(TinyViT()), torch.randn(2, *SHAPE))
    turned = rotated(graph)
    found, others = foldable_norms(turned)
    assert found == [] and set(others.values()) == {
        "an RMSNorm has no summand that could take up a shift"
    }
    assert not has_foldable_norms(with_foldable_norms(turned, all_of_them=False))
    plain = trace(nn.Sequential(nn.Conv2d(3, 2, 12), nn.Flatten()), torch.randn(2, *SHAPE))
    with pytest.raises(ModelError, match="there is none"):
        with_foldable_norms(plain, all_of_them=True)
