"""A GPU whose memory really runs out."""

import pytest
import torch

from synq_fast.errors import SynqFastWarning
from synq_fast.finetune.micro_batch import MicroBatches
from synq_fast.finetune.step import Step
from tests.finetune.test_micro_batch import gradients, make_step
from tests.tiny import tiny_images, tiny_labels, tiny_recipe

pytestmark = pytest.mark.cuda

COUNT = 1 << 16


def on_gpu() -> Step:
    step = make_step()
    for network in (step.student_module, step.student.module, step.teacher.module):
        network.cuda()
    assert all(p.is_cuda for p in step.parameters)
    assert step.recipe == tiny_recipe(finetune__distillation__temperature=2.0).finetune
    return step


def test_batch_larger_than_the_memory_gives_the_same_gradients():
    step = on_gpu()
    images, labels = tiny_images(COUNT).cuda(), tiny_labels(COUNT).cuda()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(images, labels)
    needed = torch.cuda.max_memory_allocated() - before
    expected = gradients(step)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    parts = MicroBatches()
    try:
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 0.4 * needed) / total
        )
        with pytest.warns(SynqFastWarning, match="CUDA out of memory"):
            parts(step, images, labels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert COUNT // 16 <= parts.size <= COUNT // 4
    for one, other in zip(expected, gradients(step), strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()
