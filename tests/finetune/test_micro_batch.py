import warnings

import pytest
import torch

from synq_fast.bank.batches import BatchSource
from synq_fast.bank.images import ImageBank
from synq_fast.errors import OutOfMemoryError, SynqFastWarning
from synq_fast.finetune.micro_batch import MicroBatches, backward_in_parts
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training, training_loop
from synq_fast.optimize.loop import Loop
from synq_fast.quant.layers import WeightQuantized
from synq_fast.runtime.out_of_memory import is_out_of_memory
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.tiny import equal_states, tiny_images, tiny_labels, tiny_pair, tiny_recipe

OPTIONS = {
    "everything": {},
    "no perturbation": {"finetune__perturbation__weight": 0.0},
    "sign through the teacher": {"finetune__perturbation__through_teacher": True},
    "labels' maps": {"finetune__cam__target": "label"},
    "learned ranges": {"quantization__learn_ranges": True},
    "bf16": {"finetune__precision": "bf16"},
    "logits alone": {"finetune__features__weight": 0.0, "finetune__cam__weight": 0.0},
}


def make_step(seed=0, **overrides) -> Step:
    return make_pair(seed, **overrides)[0]


def make_pair(seed=0, **overrides):
    """A student that is far from its teacher, so that no gradient is a small difference."""
    recipe = tiny_recipe(finetune__distillation__temperature=2.0, **overrides)
    teacher, student, points = tiny_pair(recipe, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                weight = module.weight
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return Step(teacher, student, points, recipe.finetune), student


def gradients(step: Step) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in step.parameters]
    for parameter in step.parameters:
        parameter.grad = None
    return found


def allocator_error(images: int) -> RuntimeError:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {images} GiB.")


def limit_memory(step: Step, images: int, make_error=allocator_error) -> list[int]:
    """Passes over more images fail, after the first graphs exist; notes the sizes tried."""
    original, tried = step.terms, []

    def limited(batch, labels):
        tried.append(len(labels))
        losses = original(batch, labels)
        if len(labels) > images:
            step.parameters[0].grad = torch.full_like(step.parameters[0], 1e6)
            raise make_error(len(labels))
        return losses

    step.terms = limited
    return tried


@pytest.mark.parametrize("overrides", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("count", "size"), [(6, 3), (7, 4), (7, 3), (5, 1)])
def test_parts_give_the_gradients_of_the_whole(overrides, count, size):
    step = make_step(**overrides)
    images, labels = tiny_images(count), tiny_labels(count)
    whole = step(images, labels)
    expected = gradients(step)
    parts = backward_in_parts(step, images, labels, size)
    found = gradients(step)
    assert list(parts) == list(whole) == step.term_names
    # In bfloat16 another order of sums moves activations to other levels of their quantizers.
    tolerance = 1e-2 if "finetune__precision" in overrides else 1e-5
    for name, loss in whole.items():
        torch.testing.assert_close(parts[name], loss, rtol=tolerance, atol=1e-6)
    for one, other in zip(expected, found, strict=True):
        assert (one - other).norm() <= tolerance * one.norm()
    assert all(gradient.abs().sum() > 0 for gradient in expected)


def test_parts_share_one_quantization_of_the_weights(monkeypatch):
    step = make_step()
    quantized = []
    original = WeightQuantized.derive

    def noted(layer):
        quantized.append(layer)
        return original(layer)

    monkeypatch.setattr(WeightQuantized, "derive", noted)
    backward_in_parts(step, tiny_images(6), tiny_labels(6), 2)
    layers = [m for m in step.student_module.modules() if isinstance(m, WeightQuantized)]
    assert quantized == layers
    assert all(layer._held is None for layer in layers)


def test_a_part_is_forgotten_before_the_next():
    """Each part's backward frees its tensors: memory holds those of one part at a time."""
    step = make_step()
    original, before = step.terms, []

    def watched(batch, labels):
        for losses in before:
            with pytest.raises(RuntimeError, match="second time"):
                torch.autograd.grad(sum(losses.values()), step.parameters, allow_unused=True)
        before.append(original(batch, labels))
        return before[-1]

    step.terms = watched
    backward_in_parts(step, tiny_images(6), tiny_labels(6), 2)
    assert len(before) == 3


@pytest.mark.parametrize(
    "make_error",
    [
        allocator_error,
        lambda n: MemoryError(),
        lambda n: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["cuda", "python", "cudnn"],
)
def test_memory_that_runs_out_halves_the_micro_batch_and_says_so(make_error):
    images, labels = tiny_images(7), tiny_labels(7)
    step = make_step()
    expected_terms = step(images, labels)
    expected = gradients(step)
    tried = limit_memory(step, 2, make_error)
    parts = MicroBatches()
    with pytest.warns(SynqFastWarning) as caught:
        terms = parts(step, images, labels)
    assert [str(w.message).split("micro-batches of ")[1][:8] for w in caught] == [
        "4 images",
        "2 images",
    ]
    assert tried == [7, 4, 2, 2, 2, 1]
    for one, other in zip(expected, gradients(step), strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()
    assert sum(terms.values()) == pytest.approx(sum(expected_terms.values()).item(), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        parts(step, images, labels)
    assert tried[6:] == [2, 2, 2, 1]


def test_one_image_that_does_not_fit_is_an_error():
    step = make_step()
    limit_memory(step, 0)
    with (
        pytest.warns(SynqFastWarning),
        pytest.raises(OutOfMemoryError, match=r"single image .*allocate 1 GiB"),
    ):
        MicroBatches()(step, tiny_images(3), tiny_labels(3))


def test_other_errors_pass_through():
    step = make_step()
    limit_memory(step, 0, lambda n: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        MicroBatches()(step, tiny_images(3), tiny_labels(3))


def test_allocators_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OutOfMemoryError("said already"))


def trainer(path=None) -> Loop:
    step, student = make_pair()
    recipe = tiny_recipe()
    bank = ImageBank(tiny_images(10), tiny_labels(10))
    batches = BatchSource(bank, 4, recipe.finetune.crop_scale, recipe.filter, 0)
    return training_loop(
        Training(step, student, batches, recipe.finetune),
        checkpoint=None if path is None else CheckpointFile(path, 0.0),
        fingerprint="p",
    )


def test_micro_batch_survives_a_resume_to_the_same_weights(tmp_path):
    """The split decides roundings: memory that comes back must not change the rest of the run."""
    straight = trainer()
    tried = limit_memory(straight.iteration.step, 2)
    with pytest.warns(SynqFastWarning):
        straight.run()
    assert tried == [4] + [2] * 12

    path = tmp_path / "c.safetensors"
    first = trainer(path)
    limit_memory(first.iteration.step, 2)
    first.advance = lambda advance=first.advance: advance() if first.done < 3 else 1 / 0
    with pytest.warns(SynqFastWarning), pytest.raises(ZeroDivisionError):
        first.run()
    second = trainer(path)
    tried = limit_memory(second.iteration.step, 2)
    assert second.resume() and second.iteration.micro_batches.size == 2
    second.run()
    assert tried == [2] * 6
    assert equal_states(second.iteration.student, straight.iteration.student)


def test_memory_that_runs_out_beside_the_step_is_explained():
    run = trainer()

    def failing(step):
        raise allocator_error(3)

    run.iteration.batches.inputs = failing
    with pytest.raises(OutOfMemoryError, match=r"fine-tuning ran out .*lower finetune\.batch_size"):
        run.run()
