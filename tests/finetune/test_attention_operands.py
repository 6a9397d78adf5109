"""Ranges of queries, keys and values by what attention makes of them."""

import pytest
import torch

from synq_fast.engine.student import build_student
from synq_fast.finetune.attention_operands import fit_attention_operands
from synq_fast.finetune.probabilities import fit_probabilities
from synq_fast.graph.attention import _einsum_stacking, find_attentions
from synq_fast.graph.taps import Tapped
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, observing
from synq_fast.quant.activations import bypassing
from synq_fast.quant.settings import Quantization
from synq_fast.reference import fake_quantize
from tests import transformers
from tests.transformers import tiny_vit

BITS = 3


def student(placement="vit", **recipe):
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    made = build_student(graph, BitWidths(4, BITS), Quantization(placement=placement, **recipe), ())
    # Four images, as many as values are fitted to; few rows, so that none is left out.
    images = torch.randn(4, *teacher.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), observing(made):
        made(images)
    return made, find_attentions(graph), images


def operands(made, attention):
    """The quantizers of q, k and v, and their values and the probabilities in floating point."""
    nodes = {node.name: node for node in made.graph.nodes}
    q, k = nodes[attention.logits].all_input_nodes
    p, v = nodes[attention.output].all_input_nodes
    quantizers = [made.get_submodule(str(node.target)) for node in (q, k, v)]
    assert all(isinstance(one, ActivationQuantizer) for one in quantizers)
    with torch.no_grad(), bypassing(made):
        return quantizers, Tapped(made, [n.all_input_nodes[0].name for n in (q, k, v, p)])


@pytest.mark.parametrize("head_ranges", [False, True])
def test_products_err_less_than_by_any_shrunk_range(head_ranges):
    made, attentions, images = student(head_ranges=head_ranges)
    before = {n: t.clone() for n, t in made.state_dict().items()}
    assert fit_attention_operands(made, attentions, images) == 6
    changed = {n.rpartition(".")[0] for n, t in made.state_dict().items()
               if not torch.equal(t, before[n])}  # fmt: skip
    assert len(changed) == 6
    for attention in attentions:
        quantizers, tapped = operands(made, attention)
        with torch.no_grad(), bypassing(made):
            q, k, v, p = (x.double() for x in tapped(images).features)
        assert not any(one.bypass for one in quantizers)

        def logits_of_q(error, k=k):
            # Keys of all images, as the fit takes them.
            return torch.einsum("bhnd,chdm->bhcnm", error, k)

        def logits_of_k(error, q=q):
            return torch.einsum("chnd,bhdm->bhcnm", q, error)

        def output(error, p=p):
            return p @ error

        for x, quantizer, product in zip(
            (q, k, v), quantizers, (logits_of_q, logits_of_k, output), strict=True
        ):
            for head in range(x.shape[1]) if head_ranges else [slice(None)]:
                one = torch.zeros_like(x)
                one[:, head] = 1

                def error(low, high, x=x, one=one, product=product):
                    rounded = fake_quantize(x.float(), low, high, BITS).double()
                    return float(product((rounded - x) * one).square().sum())

                ends = quantizer.range_min, quantizer.range_max
                low, high = (end[head] for end in ends) if head_ranges else ends
                lowest, highest = x[:, head].float().aminmax()
                shrunk = [error(lowest * s, highest * s) for s in torch.linspace(0.02, 1, 50)]
                assert error(low, high) <= min(shrunk) * (1 + 1e-4)


def test_networks_whose_operands_are_not_quantized_stay():
    made, attentions, images = student("all_inputs")
    before = {n: t.clone() for n, t in made.state_dict().items()}
    assert fit_attention_operands(made, attentions, images) == 0
    assert all(torch.equal(t, before[n]) for n, t in made.state_dict().items())


def test_shrunk_as_every_range():
    made, attentions, images = student()
    fit_attention_operands(made, attentions, images)
    quantizers, _ = operands(made, attentions[0])
    whole = [one.range_max.clone() for one in quantizers]
    for one in quantizers:
        one.shrink = 0.5
    fit_attention_operands(made, attentions, images)
    assert all(torch.equal(q.range_max, end / 2) for q, end in zip(quantizers, whole, strict=True))


class EinsumAttention(transformers.Attention):
    """The same with heads behind the tokens."""

    def forward(self, x):
        images, tokens, width = x.shape
        heads = transformers.HEADS
        qkv = self.qkv(x).reshape(images, tokens, 3, heads, width // heads)
        q, k, v = qkv.unbind(2)
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * (width // heads) ** -0.5
        y = torch.einsum("bhnm, bmhd -> bnhd", logits.softmax(-1), v)
        return self.proj(y.reshape(images, tokens, width))


def test_products_by_einsum_are_fitted_alike(monkeypatch):
    found = []
    for attention in (transformers.Attention, EinsumAttention):
        monkeypatch.setattr(transformers, "Attention", attention)
        made, attentions, images = student(head_ranges=False)
        assert len(attentions) == 2
        assert fit_attention_operands(made, attentions, images) == 6
        assert fit_probabilities(made, attentions, images) == 2
        quantizers = [one for a in attentions for one in operands(made, a)[0]]
        found.append(torch.stack([end for q in quantizers for end in (q.range_min, q.range_max)]))
    torch.testing.assert_close(found[0], found[1])
    # Heads are not dimension 1 there, but for the probabilities'.
    made, attentions, images = student(head_ranges=True)
    fit_attention_operands(made, attentions, images)
    fit_probabilities(made, attentions, images)
    assert all(q.heads is None for a in attentions for q in operands(made, a)[0])
    heads = [m.heads for m in made.modules() if isinstance(m, ActivationQuantizer) and m.from_zero]
    assert heads == [transformers.HEADS] * 2


@pytest.mark.parametrize(
    "equation", ["bnhd,bmhd->bhnm", "bhnd,bhmd->bhnm", "bhnm,bmhd->bnhd", "bhnm,bhmd->bhnd"]
)
def test_operands_as_stacks_of_matrices(equation):
    sizes = dict(zip("bhnmd", (2, 3, 4, 5, 7), strict=True))
    terms = equation.replace("->", ",").split(",")
    first, second = (torch.randn(*(sizes[c] for c in term)) for term in terms[:2])
    orders = _einsum_stacking(equation)
    a, b = first.permute(orders[0]), second.permute(orders[1])
    assert a.shape[:3] == (2, 3, 4)
    product = a @ b
    expected = torch.einsum(equation, first, second)
    shared = "bhn" + terms[2].translate(str.maketrans("", "", "bhn"))
    torch.testing.assert_close(product, expected.permute([terms[2].index(c) for c in shared]))


@pytest.mark.parametrize(
    "equation", ["bnd,bmd->bnm", "...nd,...md->...nm", "bhnd,bhmd", "abcd,efgh->abcd"]
)
def test_what_is_no_stack_of_images_and_heads(equation):
    assert _einsum_stacking(equation) is None
