"""A small residual network, a teacher around it and a recipe of a few steps."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import synq_fast
from synq_fast.bank.batches import BatchSource
from synq_fast.bank.images import ImageBank
from synq_fast.engine.student import build_student
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training, training_loop
from synq_fast.models import Teacher, load_teacher
from synq_fast.optimize.loop import Loop
from synq_fast.quant import Structure, find_structure, observing, trace
from synq_fast.recipes import Recipe, load_recipe
from synq_fast.storage.checkpoint_file import CheckpointFile
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.settings import Synthesis
from synq_fast.synthesis.synthesizer import Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher

SHAPE = (2, 8, 8)
CLASSES = 3

TINY_OVERRIDES = {
    "synthesis.images": 12,
    "synthesis.batch_size": 6,
    "synthesis.steps": 3,
    "synthesis.augment_probability": 0.5,
    "quantization.calibration_batches": 2,
    "quantization.calibration_batch_size": 4,
    "filter.cutoff": 4.0,
    "finetune.steps": 6,
    "finetune.batch_size": 4,
    "finetune.learning_rate": 1e-3,
    "finetune.checkpoint_seconds": 0.0,
}


class TinyNet(nn.Module):
    """Stem, one residual block with an in-place shared ReLU, a head; 8x8 images to 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(x))
        out += x
        return self.fc(functional.adaptive_avg_pool2d(self.relu(out), 1).flatten(1))


def randomize_statistics(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and factors that differ from their start."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(draw(norm.running_mean, -0.5, 0.5))
            norm.running_var.copy_(draw(norm.running_var, 0.5, 1.5))
            if norm.affine:
                norm.weight.data.copy_(draw(norm.weight, 0.5, 1.5))
                norm.bias.data.copy_(draw(norm.bias, -0.3, 0.3))
    return module


def tiny_net(seed: int = 0) -> TinyNet:
    """The same random network for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNet()
    return randomize_statistics(net, seed).eval()


def tiny_teacher(seed: int = 0) -> Teacher:
    return load_teacher(tiny_net(seed), input_shape=SHAPE)


def tiny_recipe(**overrides: object) -> Recipe:
    """The digits recipe in a few steps; overrides as ``finetune__steps=3``."""
    own = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe("synq-digits", {**TINY_OVERRIDES, **own})


def tiny_pair(
    recipe: Recipe, bits: object = None, seed: int = 0
) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule, Structure]:
    """Traced teacher, calibrated student and tap points."""
    from synq_fast.quant import BitWidths

    graph = trace(tiny_teacher(seed).module, tiny_images(2))
    student = build_student(graph, bits or BitWidths(4, 4), recipe.quantization).eval()
    with torch.no_grad(), observing(student):
        student(tiny_images(8, seed=99))
    return graph, student, find_structure(graph, tiny_images(2))


def tiny_training(
    recipe: Recipe,
    bank: ImageBank,
    *,
    path: Path | None = None,
    fingerprint: str = "print",
    seed: int = 0,
) -> Loop:
    """Training of the small student on a bank."""
    teacher, student, structure = tiny_pair(recipe, seed=seed)
    own = recipe.finetune
    batches = BatchSource(bank, own.batch_size, own.crop_scale, recipe.filter, 0)
    return training_loop(
        Training(Step(teacher, student, structure, own), student, batches, own),
        checkpoint=None if path is None else CheckpointFile(path, own.checkpoint_seconds),
        fingerprint=fingerprint,
    )


def tiny_synthesizer(
    recipe: Synthesis, *, net: nn.Module | None = None, kept: Kept | None = None, seed: int = 0
) -> Synthesizer:
    """Makes images from the small network, or from another."""
    graph = trace((net or tiny_net()).requires_grad_(False), tiny_images(2))
    return Synthesizer(
        ImageTeacher(graph, find_structure(graph, tiny_images(2))),
        recipe,
        input_shape=SHAPE,
        classes=CLASSES,
        seed=seed,
        device=torch.device("cpu"),
        kept=kept,
    )


def tiny_images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def tiny_labels(count: int, seed: int = 2) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same tensors bit for bit."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def run(
    teacher: object = None, *, overrides: dict[str, object] | None = None, **options: object
) -> synq_fast.QuantizationResult:
    """Quantize the small network, or another teacher, in a few silent steps."""
    return synq_fast.quantize(
        tiny_net() if teacher is None else teacher,
        options.pop("recipe", "synq-digits"),
        options.pop("bits", "w4a4"),
        input_shape=None if isinstance(teacher, str | Teacher) else SHAPE,
        overrides={**TINY_OVERRIDES, **(overrides or {})},
        progress=False,
        **options,
    )


def labelled(shape: tuple[int, int, int] = SHAPE) -> list[tuple[Tensor, Tensor]]:
    """An evaluation set for the small network, or for images of another shape."""
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(7))
    return [(images, tiny_labels(16, 7))]
