"""The step with both networks compiled: the same terms and gradients."""

import pytest
import torch

from synq_fast.finetune.step import Step
from tests.tiny import tiny_images, tiny_labels, tiny_pair, tiny_recipe


def terms_and_gradients(compile: bool):
    # A low temperature: at 20 the divergence is a difference of nearly equal numbers.
    recipe = tiny_recipe(finetune__compile=compile, finetune__distillation__temperature=1.0)
    teacher, student, points = tiny_pair(recipe)
    step = Step(teacher, student, points, recipe.finetune)
    found = []
    for images in (tiny_images(4), tiny_images(5)[1:]):
        for parameter in step.parameters:
            parameter.grad = None
        terms = step(images, tiny_labels(4))
        found.append(([*terms.values()], [p.grad.clone() for p in step.parameters]))
    return found


@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_give_the_same_terms_and_gradients():
    plain, compiled = terms_and_gradients(False), terms_and_gradients(True)
    for (terms, gradients), (others, more) in zip(plain, compiled, strict=True):
        torch.testing.assert_close(others, terms, rtol=1e-3, atol=1e-5)
        for one, other in zip(gradients, more, strict=True):
            assert (one - other).norm() <= 1e-4 * one.norm()
