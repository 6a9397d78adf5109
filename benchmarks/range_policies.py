"""Which range policy suits low bits: the measurement behind the default.

    python -m benchmarks.range_policies --bank runs/accuracy/cifar10/bank-seed0

Calibrates without fine-tuning under each policy and compares the quantized CIFAR-10 ResNet-20 with
its teacher on images that nothing is evaluated on: small crops of the two photographs that
scikit-learn ships. Labels play no part.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import Tensor, fx
from torch.nn import functional

from synq_fast.bank.images import ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.data import data_root
from synq_fast.engine.student import build_student
from synq_fast.finetune.calibration import calibrate
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant import BitWidths, held_weights, trace
from synq_fast.recipes import Recipe, load_recipe

from .accuracy import NETWORKS

POLICIES = [
    ("minmax", 1.0),
    ("ema", 1.0),
    ("ema", 0.75),
    ("ema", 0.526),
    ("mse", 1.0),
    ("mse", 0.8),
]


def photograph_crops(teacher: Teacher, count: int = 768, seed: int = 0) -> Tensor:
    """Crops of 32 to 400 pixels, resized to the teacher's input: (count, 3, H, W), normalised."""
    draw = random.Random(seed)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    _, height, width = teacher.input_shape
    crops = []
    for _ in range(count):
        photograph = draw.choice(photographs)
        side = int(32 * (400 / 32) ** draw.random())
        left, top = (draw.randrange(length - side) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR)))
    images = torch.tensor(np.stack(crops)).permute(0, 3, 1, 2) / 255
    return teacher.normalize(images)


def calibrated(
    graph: fx.GraphModule, bits: BitWidths, recipe: Recipe, bank: ImageBank
) -> fx.GraphModule:
    """A student with the ranges that the recipe finds on the bank."""
    quantization = recipe.quantization
    student = build_student(graph, bits, quantization).eval()
    batches = BankSource(bank, recipe.filter, 0).batches(quantization.calibration_batch_size)
    calibrate(student, batches, quantization.calibration_batches)
    return student


@torch.no_grad()
def distance(graph: fx.GraphModule, student: fx.GraphModule, images: Tensor) -> tuple[float, float]:
    """Share of images with the teacher's class in %, and KL(teacher || student)."""
    with held_weights(student):
        ours = torch.cat([student(part) for part in images.split(128)])
    theirs = torch.cat([graph(part) for part in images.split(128)])
    agree = (ours.argmax(1) == theirs.argmax(1)).float().mean().item() * 100
    kl = functional.kl_div(
        ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return agree, kl.item()


def main() -> None:
    """Print one line per width and policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bank", type=Path, required=True, help="folder of synthetic images")
    options = parser.parse_args()
    name, weights = NETWORKS["cifar10"]
    teacher = load_teacher(name, weights=data_root() / weights)
    graph = trace(teacher.module, teacher.example())
    shards = [load_file(path) for path in sorted(options.bank.glob("shard-*.safetensors"))]
    bank = ImageBank(*(torch.cat([shard[key] for shard in shards]) for key in ("images", "labels")))
    images = photograph_crops(teacher)
    print("| bits | policy | shrink | teacher's class, % | KL |\n|---|---|---|---|---|")
    for bits in ("w4a4", "w3a3"):
        for policy, shrink in POLICIES:
            overrides = {"quantization.range": policy, "quantization.shrink": shrink}
            recipe = load_recipe("synq-cifar", overrides)
            student = calibrated(graph, BitWidths.parse(bits), recipe, bank)
            agree, kl = distance(graph, student, images)
            print(f"| {bits} | {policy} | {shrink} | {agree:.1f} | {kl:.2f} |", flush=True)


if __name__ == "__main__":
    main()
