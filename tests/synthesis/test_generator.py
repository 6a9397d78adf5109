"""Networks that draw images of a class."""

import pytest
import torch
from torch.nn import functional

from synq_fast.synthesis.generator import ClassNorm, ConditionalGenerator


def test_a_norm_for_each_class():
    torch.manual_seed(0)
    norm = ClassNorm(4, 3)
    x, labels = torch.randn(6, 4, 5, 5), torch.tensor([0, 2, 1, 2, 0, 0])
    plain = functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(norm(x, labels), plain)
    norm.factor.weight.data.normal_()
    norm.summand.weight.data.normal_()
    factor, summand = (
        table.weight[labels][:, :, None, None] for table in (norm.factor, norm.summand)
    )
    torch.testing.assert_close(norm(x, labels), plain * factor + summand)
    norm(x, labels)[labels == 1].square().sum().backward()
    reached = norm.factor.weight.grad.abs().sum(1) > 0
    assert reached.tolist() == [False, True, False]


@pytest.mark.parametrize("class_norms", [False, True])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 13, 9), (2, 5, 8)])
def test_images(class_norms, shape):
    torch.manual_seed(0)
    network = ConditionalGenerator(7, 5, shape, class_norms=class_norms)
    noise, labels = torch.randn(8, 7), torch.arange(8) % 5
    images = network(noise, labels)
    assert images.shape == (8, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2


def test_where_the_class_enters():
    torch.manual_seed(0)
    noise, labels = torch.randn(8, 7), torch.arange(8) % 5
    other = (labels + 1) % 5
    by_noise = ConditionalGenerator(7, 5, (3, 16, 16))
    assert not torch.equal(by_noise(noise, labels), by_noise(noise, other))
    by_norms = ConditionalGenerator(7, 5, (3, 16, 16), class_norms=True)
    # Classes begin alike, and each learns for itself, at every norm.
    assert torch.equal(by_norms(noise, labels), by_norms(noise, other))
    by_norms(noise, labels)[labels == 3].square().mean().backward()
    norms = [module for module in by_norms.modules() if isinstance(module, ClassNorm)]
    assert [norm.factor.weight.shape for norm in norms] == [(5, 128), (5, 128), (5, 64)]
    for norm in norms:
        assert norm.factor.weight.grad[3].any() and norm.summand.weight.grad[3].any()
    assert not any("embedding" in name for name, _ in by_norms.named_parameters())
