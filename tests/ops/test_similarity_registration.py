"""The registered patch similarity ops inside PyTorch's own machinery."""

import pytest
import torch

from synq_fast import ops
from tests.similarity_cases import evaluate, make_tokens
from tests.tolerances import assert_close

NUMBERS = (10, 0.1, 1e-4)
TOKENS = {
    "float32": torch.randn(2, 5, 4),
    "half": torch.randn(2, 5, 4).half(),
    "strided": torch.randn(2, 6, 4)[:, 1:],
    "empty": torch.empty(0, 5, 4),
}
LIBRARY = torch.ops.synq_fast


@pytest.mark.compile
@pytest.mark.parametrize(
    "name", ["patch_similarity_entropy", "patch_similarity_entropy_with_gradient"]
)
@pytest.mark.parametrize("tokens", TOKENS)
def test_opcheck(name, tokens):
    op = getattr(LIBRARY, name).default
    for requires_grad in (False, True):
        leaf = TOKENS[tokens].detach().requires_grad_(requires_grad)
        torch.library.opcheck(op, (leaf, *NUMBERS))


def test_direct_calls_agree():
    tokens = make_tokens((2, 9, 5)).requires_grad_()
    alone = LIBRARY.patch_similarity_entropy(tokens, *NUMBERS)
    entropy, gradient = LIBRARY.patch_similarity_entropy_with_gradient(tokens, *NUMBERS)
    assert not gradient.requires_grad
    assert torch.equal(alone, entropy)
    for result in (alone, entropy):
        (found,) = torch.autograd.grad(result.sum(), tokens)
        assert torch.equal(found, gradient)


def test_nothing_is_saved_without_a_gradient():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        ops.patch_similarity_entropy(torch.randn(2, 5, 4))
        with torch.no_grad():
            ops.patch_similarity_entropy(torch.randn(2, 5, 4, requires_grad=True))
    assert saved == []


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic):
    torch.compiler.reset()

    def loss(tokens):
        return ops.patch_similarity_entropy(tokens * 2, bandwidth=0.1) * 3

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 9, 5), (3, 20, 7)):
        tokens = make_tokens(shape)
        for mine, eager in zip(evaluate(compiled, tokens), evaluate(loss, tokens), strict=True):
            assert_close(mine, eager, "compiled", factor=max(1.0, float(eager.abs().max())))


def test_export():
    class Module(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return ops.patch_similarity_entropy(tokens, bandwidth=0.1).mean()

    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), (make_tokens((4, 9, 5)),), dynamic_shapes=({0: batch},))
    assert "patch_similarity_entropy" in program.graph_module.code
    other = make_tokens((3, 9, 5))
    assert torch.equal(program.module()(other), Module()(other))


def test_autocast_keeps_float32():
    tokens = make_tokens((2, 9, 5))
    expected = evaluate(ops.patch_similarity_entropy, tokens)
    for backend in ("auto", "reference"):

        def forward(tokens, chosen=backend):
            with torch.autocast("cpu", torch.bfloat16), ops.backend(chosen):
                return ops.patch_similarity_entropy(tokens)

        entropy, gradient = evaluate(forward, tokens)
        assert entropy.dtype == torch.float32
        assert_close(entropy, expected[0], "patch_entropy")
        assert (gradient - expected[1]).norm() <= 1e-3 * expected[1].norm()


def test_bad_arguments_of_a_direct_call():
    tokens = torch.ones(2, 3, 4)
    for arguments, message in (
        ((tokens.double(), *NUMBERS), "tokens (is not|must be)"),
        ((tokens[0], *NUMBERS), "tokens (is not|must)"),
        ((tokens, 1, 0.1, 1e-4), "points (is not|must be)"),
        ((tokens, 10, 0.0, 1e-4), "bandwidth (is not|must be)"),
        ((tokens, 10, 0.1, 0.0), "eps (is not|must be)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            LIBRARY.patch_similarity_entropy(*arguments)
