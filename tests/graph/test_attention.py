"""Attention of torch, timm and torchvision in the open form."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.errors import TraceError
from synq_fast.graph import called_module
from synq_fast.graph.attention import find_attentions, products
from synq_fast.graph.trace import trace
from tests.transformers import SHAPE, TinyViT

B, N, C, HEADS = 2, 9, 12, 3


class Calls(nn.Module):
    """Tokens of an image through one call of an attention."""

    def __init__(self, call, *parts: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, C, 2, stride=2)
        self.parts, self.call = nn.ModuleList(parts), call

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.call(tokens, *self.parts).flatten(1)


def product(**options):
    def call(x):
        q, k, v = x.reshape(-1, N, HEADS, C // HEADS).transpose(1, 2), x[:, None], x[:, None]
        k = k[..., : C // HEADS].expand(-1, HEADS, -1, -1)
        return functional.scaled_dot_product_attention(q, k, v.expand(-1, HEADS, -1, -1), **options)

    return call


def module(**options):
    options = {"batch_first": True} | options
    return nn.MultiheadAttention(C, HEADS, **options)


def mask(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    if kind == "float":
        return torch.randn(N, N, generator=g)
    kept = torch.rand(N, N, generator=g) < 0.6
    kept.fill_diagonal_(True)
    return kept


def attend(x, attention):
    return attention(x, x, x, need_weights=False)[0]


def others(x, attention):
    return attention(x, x.flip(1), x.roll(1, 1))[0]


def weighed(x, attention):
    y, weights = attention(x, x, x)
    return torch.cat([y, weights], 2)


def each_head(x, attention):
    return attention(x, x, x, average_attn_weights=False)[1]


CALLS = {
    "plain": lambda: Calls(product()),
    "scale": lambda: Calls(product(scale=0.3)),
    "causal": lambda: Calls(product(is_causal=True)),
    "boolean mask": lambda: Calls(product(attn_mask=mask("bool"))),
    "float mask": lambda: Calls(product(attn_mask=mask("float"))),
    "module": lambda: Calls(attend, module()),
    "tokens first": lambda: Calls(attend, module(batch_first=False)),
    "without biases": lambda: Calls(attend, module(bias=False)),
    "other keys and values": lambda: Calls(others, module()),
    "keys of another width": lambda: Calls(
        lambda x, a: a(x, x[..., :5], x[..., :7])[0], module(kdim=5, vdim=7)
    ),
    "weights too": lambda: Calls(weighed, module()),
    "weights of each head": lambda: Calls(each_head, module()),
    "module, boolean mask": lambda: Calls(
        lambda x, a: a(x, x, x, attn_mask=~mask("bool"))[0], module()
    ),
    "module, float mask": lambda: Calls(
        lambda x, a: a(x, x, x, attn_mask=mask("float"))[0], module()
    ),
    "module, causal": lambda: Calls(
        lambda x, a: a(x, x, x, attn_mask=~mask("bool").tril(), is_causal=True)[0], module()
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_open_form_computes_the_same(name):
    torch.manual_seed(0)
    network = CALLS[name]().eval()
    x = torch.randn(B, 3, 6, 6)
    graph = trace(network, x)
    with torch.no_grad():
        assert torch.allclose(graph(x), network(x), atol=1e-5, rtol=1e-5)
    assert len(products(graph)) == (1 if name == "weights of each head" else 2)
    assert len(find_attentions(graph)) == (0 if name == "weights of each head" else 1)


def test_layers_of_attention_are_plain_layers_under_their_names():
    graph = trace(Calls(attend, module()).eval(), torch.randn(B, 3, 6, 6))
    layers = [n.target for n in graph.graph.nodes if type(called_module(graph, n)) is nn.Linear]
    assert layers == ["parts.0", "parts.0.out_proj"]


def test_a_named_attention_stays_whole():
    for leaf in ("parts.0", "MultiheadAttention"):
        graph = trace(Calls(attend, module()).eval(), torch.randn(B, 3, 6, 6), [leaf])
        assert not products(graph)
        calls = [called_module(graph, n) for n in graph.graph.nodes]
        assert any(isinstance(call, nn.MultiheadAttention) for call in calls)


REFUSED = {
    "enable_gqa": Calls(product(enable_gqa=True)),
    "bias_k": Calls(attend, module(add_bias_kv=True)),
    "add_zero_attn": Calls(attend, module(add_zero_attn=True)),
    "key_padding_mask": Calls(
        lambda x, a: a(x, x, x, key_padding_mask=x.new_zeros(x.shape[0], N).bool())[0], module()
    ),
    "a mask for each image": Calls(
        lambda x, a: a(x, x, x, attn_mask=torch.zeros(B * HEADS, N, N))[0], module()
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_opened_is_said_with_the_way_out(what):
    with pytest.raises(TraceError, match=f"{what}.*leaf_modules"):
        trace(REFUSED[what].eval(), torch.randn(B, 3, 6, 6))


def test_attentions_are_found_in_order():
    graph = trace(TinyViT().eval(), torch.randn(B, *SHAPE))
    nodes = [node.name for node in graph.graph.nodes]
    found = find_attentions(graph)
    places = [nodes.index(n) for a in found for n in (a.logits, a.probabilities, a.output)]
    assert len(found) == 2 and places == sorted(places)


def test_windows_of_torchvision_are_opened_and_torch_is_left_as_it_was():
    torchvision = pytest.importorskip("torchvision")
    network = torchvision.models.SwinTransformer(
        [4, 4], 8, [2, 2], [2, 4], [3, 3], num_classes=5
    ).eval()
    x = torch.randn(B, 3, 40, 40)
    graph = trace(network, x)
    with torch.no_grad():
        nn.init.normal_(network.head.weight)
        assert torch.allclose(graph(x), network(x), atol=1e-5)
    assert len(find_attentions(graph)) == 4
    # What torch.fx marks as wrapped would be looked for in every later trace.
    assert trace(Joined().eval(), torch.randn(B, 3, 4, 4))(x).shape[1] == 6


class Joined(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 1},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "num_heads": (1, 2)},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (2, 2), "num_heads": (1, 2)},
    "mobilevit_xxs": {},
}


@pytest.mark.parametrize("name", TIMM)
def test_transformers_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = dict(TIMM[name])
    if name.startswith("swin"):
        options["embed_dim"] = 16
    network = timm.create_model(name, num_classes=5, **options).eval()
    side = options.get("img_size", 64)
    x = torch.randn(B, 3, side, side)
    graph = trace(network, x)
    with torch.no_grad():
        assert torch.allclose(graph(x), network(x), atol=1e-4)
    wanted = {"mobilevit_xxs": 9, "vit_small_patch14_reg4_dinov2": 1}.get(name)
    wanted = wanted or (4 if name.startswith("swin") else 2)
    assert len(find_attentions(graph)) == wanted
