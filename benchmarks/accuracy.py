"""Accuracy on real networks and images: every network, width and seed, and the ablation.

    python -m benchmarks.accuracy --output runs/accuracy --networks cifar10 --bits w3a3 --ablation

Runs that are in the output folder already are read, not made again, so the table can be built in
several sittings. Weights and test images come from SYNQ_FAST_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synq_fast.data import data_root
from synq_fast.engine import quantize, synthesize
from synq_fast.models import Teacher, load_teacher
from synq_fast.recipes import load_recipe

NETWORKS = {
    "cifar10": ("cifar10-resnet20", "cifar10_resnet20.safetensors"),
    "cifar100": ("cifar100-resnet20kd", "cifar100_resnet20kd.safetensors"),
}
_NO_FILTER = {"filter.kind": "none"}
_NO_CAM = {"finetune.cam.weight": 0.0}
_ALL_LABELS = {"finetune.distillation.soft_labels_only_if_difficult": False}
ABLATION: dict[str, Mapping[str, Any]] = {
    "none": {**_NO_FILTER, **_NO_CAM, **_ALL_LABELS},
    "+ filter": {**_NO_CAM, **_ALL_LABELS},
    "+ CAM": {**_NO_FILTER, **_ALL_LABELS},
    "+ soft labels": {**_NO_FILTER, **_NO_CAM},
    "all": {},
}
Row = dict[str, Any]


def bank_seconds(teacher: Teacher, seed: int, images: int, folder: Path) -> float:
    """CPU seconds that the images of a seed took, making them where they are missing."""
    record = folder / "cpu_seconds.json"
    if not record.exists():
        started = time.process_time()
        overrides = {"synthesis.images": images}
        synthesize(teacher, folder, "synq-cifar", seed=seed, overrides=overrides)
        record.write_text(json.dumps(time.process_time() - started))
    return float(json.loads(record.read_text()))


def run(
    network: str, bits: str, seed: int, variant: str, steps: int, images: int, output: Path
) -> Row:
    """One run, or its record where it is done."""
    name = f"{bits}-{variant.replace(' ', '')}-{steps}-{images}-seed{seed}"
    folder = output / network / name
    record = folder / "accuracy.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    architecture, weights = NETWORKS[network]
    teacher = load_teacher(architecture, weights=data_root() / weights)
    bank = output / network / f"bank-{images}-seed{seed}"
    bank.mkdir(parents=True, exist_ok=True)
    synthesis = bank_seconds(teacher, seed, images, bank)
    started = time.process_time()
    result = quantize(
        teacher,
        "synq-cifar",
        bits,
        seed=seed,
        output=folder,
        overrides={
            **ABLATION[variant],
            "finetune.steps": steps,
            "synthesis.images": images,
        },
        bank=bank,
        evaluation=network,
        resume=(folder / "run.json").exists(),
    )
    row = {
        "network": network,
        "bits": bits,
        "variant": variant,
        "steps": steps,
        "images": images,
        "seed": seed,
        **{k: result.metrics[k]["top1"] for k in ("float32", "post-training", "quantized")},
        "synthesis_cpu_minutes": synthesis / 60,
        "quantize_cpu_minutes": (time.process_time() - started) / 60,
    }
    record.write_text(json.dumps(row, indent=2) + "\n")
    return row


def table(rows: list[Row]) -> str:
    """Markdown: one line per network, width, variant, steps and images, over the seeds."""
    titles = [
        "network",
        "bits",
        "terms",
        "steps",
        "images",
        "float32",
        "calibrated",
        "fine-tuned",
        "lost",
        "seeds",
        "CPU-minutes",
    ]
    lines = [" | ".join(["", *titles, ""]).strip(), "|---" * len(titles) + "|"]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        parts = ("network", "bits", "variant", "steps", "images")
        key = tuple(str(row[part]) for part in parts)
        groups.setdefault(key, []).append(row)
    for key, members in groups.items():
        final = [row["quantized"] for row in members]
        mean = statistics.mean(final)
        spread = f" ± {statistics.stdev(final):.2f}" if len(final) > 1 else ""
        float32 = members[0]["float32"]
        minutes = [row["synthesis_cpu_minutes"] + row["quantize_cpu_minutes"] for row in members]
        cells = [
            *key,
            f"{float32:.2f}",
            f"{statistics.mean(row['post-training'] for row in members):.2f}",
            f"{mean:.2f}{spread} ({', '.join(f'{value:.2f}' for value in final)})",
            f"{float32 - mean:.2f}",
            str(len(final)),
            f"{statistics.mean(minutes):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for, write the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and images")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w3a3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="fine-tuning steps, by default the recipe's")
    parser.add_argument("--images", type=int, help="synthetic images, by default the recipe's")
    parser.add_argument("--ablation", action="store_true", help="also every subset of the terms")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    recipe = load_recipe("synq-cifar")
    steps = options.steps or recipe.finetune.steps
    images = options.images or recipe.synthesis.images
    rows = [
        run(network, bits, seed, variant, steps, images, options.output)
        for network in options.networks
        for bits in options.bits
        for variant in (ABLATION if options.ablation else ["all"])
        for seed in options.seeds
    ]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"threads": os.environ.get("OMP_NUM_THREADS"), "rows": rows}, indent=2)
        options.json.write_text(text + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
