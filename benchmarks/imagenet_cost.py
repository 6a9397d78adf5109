"""What a full ImageNet run costs, from a few iterations and steps on this device.

Weights are random: the work does not depend on them. On a CPU smaller batches are measured and the
times scaled by the number of images, which overstates them a little: small batches fill it less.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from synq_fast.bank.images import ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.engine.run import Run
from synq_fast.finetune.calibration import calibrate
from synq_fast.models import load_teacher
from synq_fast.quant import BitWidths
from synq_fast.recipes import load_recipe
from synq_fast.runtime.allocator import keep_freed_memory

from . import harness
from .results_file import environment

RESULTS = Path(__file__).parent / "results" / f"imagenet_cost-{harness.DEVICE.type}.json"
ON_GPU = harness.DEVICE.type == "cuda"
# Images of an iteration and of a step, iterations of a call, calls, steps, warm-up steps.
BATCH, PART, ITERATIONS, CALLS, STEPS, WARM_UP = (
    (256, 16, 50, 3, 100, 10) if ON_GPU else (4, 4, 2, 2, 2, 1)
)


def seconds(work: Callable[[], object]) -> float:
    """Median time of a call."""
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        work()
        if ON_GPU:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def measure(model: str) -> dict[str, Any]:
    """Seconds per iteration and per step, hours per phase of a full run."""
    full = load_recipe("synq-imagenet")
    size = full.synthesis.batch_size
    torch.manual_seed(0)
    teacher = load_teacher(model, weights="random")
    finetune = replace(full.finetune, batch_size=PART, learning_rate=1e-12)

    def run(augment: float) -> Run:
        synthesis = replace(
            full.synthesis, batch_size=BATCH, steps=ITERATIONS, augment_probability=augment
        )
        recipe = replace(full, synthesis=synthesis, finetune=finetune)
        return Run(teacher, recipe, BitWidths(4, 4), harness.DEVICE)

    whole, cropped = run(0.0), run(1.0)
    plain, augmented = whole.synthesizer(), cropped.synthesizer()
    bank, share = ImageBank(*plain.batch(0, BATCH)), full.synthesis.augment_probability
    iteration = (1 - share) * seconds(lambda: plain.batch(1, BATCH)) / ITERATIONS
    iteration += share * seconds(lambda: augmented.batch(1, BATCH)) / ITERATIONS
    student, source = whole.build_student(), BankSource(bank, full.filter, 0)
    calibrate(student, source.batches(PART), 1)
    trainer = whole.training(student, source)
    for _ in range(WARM_UP):
        trainer.advance()
    step = seconds(lambda: [trainer.advance() for _ in range(STEPS)]) / STEPS

    iteration, step = iteration * size / BATCH, step * full.finetune.batch_size / PART
    centers = math.ceil(teacher.num_classes / size) * full.synthesis.centers.steps
    synthesis = math.ceil(full.synthesis.images / size) * full.synthesis.steps
    hours = {
        "centers": centers * iteration / 3600,
        "synthesis": synthesis * iteration / 3600,
        "fine-tuning": full.finetune.steps * step / 3600,
    }
    return {"model": model, "iteration, s": iteration, "step, s": step, "hours": hours}


def main() -> None:
    """Measure, print and write as JSON."""
    parser = argparse.ArgumentParser(description="The cost of a full ImageNet run.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for model in options.models:
        rows.append(measure(model))
        print(json.dumps(rows[-1]), flush=True)
    facts = environment(torch.get_num_threads()) | {"images": BATCH, "images per step": PART}
    options.json.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
