"""Random small networks: whatever is put together, every form computes what the module does.

``SYNQ_FAST_NETWORKS`` says how many are tried, by default few and always the same.
``--hypothesis-seed`` then says which.
"""

import os

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from synq_fast.quant import check_forms
from synq_fast.quant.activations import bypassing
from tests.odd_networks.layers import (
    NormTimesTwo,
    NormWithActivation,
    SamePaddedConv,
    ScaledLinear,
    ShiftedRelu,
    StandardisedConv,
)
from tests.quant.forms import every_form, traced
from tests.tiny import randomize_statistics

CHANNELS, SIZE = 4, 6
ASKED = os.environ.get("SYNQ_FAST_NETWORKS")

LAYERS = {
    "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "grouped": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=2, bias=False),
    "pointwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    "standardised": lambda: StandardisedConv(CHANNELS, CHANNELS, 3, padding=1),
    "padded": lambda: SamePaddedConv(CHANNELS, CHANNELS, 3),
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "plain norm": lambda: nn.BatchNorm2d(CHANNELS, affine=False, eps=1e-3),
    "norm and activation": lambda: NormWithActivation(CHANNELS),
    "norm times two": lambda: NormTimesTwo(CHANNELS),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "shifted relu": ShiftedRelu,
    "silu": lambda: nn.SiLU(inplace=True),
}

# Each takes the values so far and the numbers of two of them, and gives a new value.
STEPS = {
    "functional relu": lambda v, a, b: functional.relu(v[a]),
    "functional relu in place": lambda v, a, b: functional.relu(v[a], inplace=True),
    "torch relu_": lambda v, a, b: torch.relu_(v[a]),
    "relu_": lambda v, a, b: v[a].relu_(),
    "clamp_": lambda v, a, b: v[a].clamp_(-0.5, 1.5),
    "hardtanh_": lambda v, a, b: functional.hardtanh(v[a], -1, 1, True),
    "add": lambda v, a, b: v[a] + v[b],
    "add to itself": lambda v, a, b: v[a] + v[a],
    "scaled add": lambda v, a, b: torch.add(v[a], v[b], alpha=0.5),
    "scaled method": lambda v, a, b: v[a].add(v[b], alpha=2),
    "iadd": lambda v, a, b: iadd(v[a], v[b]),
    "add_": lambda v, a, b: v[a].add_(v[b], alpha=0.5),
    "imul": lambda v, a, b: imul(v[a], 0.5),
    "sub_ div_": lambda v, a, b: v[a].sub_(0.1).div_(2),
    "pooled add": lambda v, a, b: v[a] + v[b].mean((2, 3), keepdim=True),
    "gate": lambda v, a, b: v[a] * v[b].mean((2, 3), keepdim=True).sigmoid(),
    "slice write": lambda v, a, b: slice_write(v[a], v[b]),
    "item write": lambda v, a, b: item_write(v[a]),
    "view write": lambda v, a, b: view_write(v[a]),
    "old view": lambda v, a, b: old_view(v[a]),
    "concatenate": lambda v, a, b: torch.cat([v[a], v[b]], 1)[:, ::2],
    "shuffle": lambda v, a, b: shuffle(v[a]),
    "detach": lambda v, a, b: v[a] + v[b].detach(),
    "clone": lambda v, a, b: v[a].clone(),
    "identity": lambda v, a, b: v[a],
    "dropout": lambda v, a, b: functional.dropout(v[a], 0.5, False, True),
}


def iadd(x, y):
    x += y
    return x


def imul(x, y):
    x *= y
    return x


def slice_write(x, y):
    x[:, :2] += y[:, 2:]
    return x


def item_write(x):
    x[:, 1, ::2] = 0.25
    return x


def view_write(x):
    flat = x.flatten(1)
    flat.mul_(0.5)
    return x + flat.view_as(x)


def old_view(x):
    turned = x.transpose(2, 3)
    x.add_(1)
    return turned + x


def shuffle(x):
    batch, channels, rows, columns = x.shape
    x = x.view(batch, 2, channels // 2, rows, columns).transpose(1, 2)
    return x.reshape(batch, channels, rows, columns)


class RandomNet(nn.Module):
    def __init__(self, program, head: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        kinds = {name for name, _, _ in program if name in LAYERS}
        # Two calls of one name share a layer.
        self.layers = nn.ModuleDict({name: LAYERS[name]() for name in sorted(kinds)})
        self.fc = ScaledLinear(CHANNELS, 3) if head == "scaled" else nn.Linear(CHANNELS, 3)
        self.program = program

    def forward(self, x, mask=None, extra: float = 0.5, flag=False):
        if mask is not None:
            x = x * mask
        values = [self.stem(x)]
        for name, a, b in self.program:
            a, b = a % len(values), b % len(values)
            layer = name in LAYERS
            values.append(self.layers[name](values[a]) if layer else STEPS[name](values, a, b))
        result = values[-1] if flag else values[-1] + extra * values[len(values) // 2]
        return self.fc(result.mean((2, 3)))


program = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(sorted(LAYERS)), st.sampled_from(sorted(STEPS))),
        # Mostly what was made last, so that chains of layers come up.
        st.one_of(st.just(-1), st.integers(0, 6)),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=int(ASKED or 60), derandomize=ASKED is None)
@given(
    program=program,
    head=st.sampled_from(["plain", "scaled"]),
    placement=st.sampled_from(["auto", "all_inputs"]),
    seed=st.integers(0, 3),
)
def test_every_form_of_a_random_network_computes_what_the_module_does(
    program, head, placement, seed
):
    torch.manual_seed(seed)
    module = randomize_statistics(RandomNet(program, head), seed).eval().double()
    module.requires_grad_(False)
    images = torch.randn(3, 3, SIZE, SIZE, dtype=torch.float64)
    graph, student, points = traced(module, images, placement=placement)
    given = images.clone()
    with torch.no_grad():
        expected = module(images.clone())
        for form in every_form(graph, student, points):
            with bypassing(form):
                for layout in (torch.contiguous_format, torch.channels_last):
                    found = form(images.to(memory_format=layout))
                    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        assert torch.equal(images, given)
    check_forms(module, graph, student, points)
