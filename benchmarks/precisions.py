"""Accuracy and time of each precision policy on CIFAR-10 ResNet-20, on one bank of images.

    python -m benchmarks.precisions --output runs/precisions --json precisions.json

TF32 is measured where there is a GPU. Runs that the output folder holds are read, not made again.
Weights and test images come from SYNQ_FAST_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch

from synq_fast.data import data_root
from synq_fast.engine import quantize
from synq_fast.models import load_teacher

Row = dict[str, Any]


def run(bits: str, precision: str, steps: int, output: Path) -> Row:
    """One run with the recipe's own values but for the precision and the number of steps."""
    folder = output / f"{bits}-{precision}-{steps}"
    record = folder / "precision.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    result = quantize(
        load_teacher("cifar10-resnet20", weights=data_root() / "cifar10_resnet20.safetensors"),
        "synq-cifar",
        bits,
        output=folder,
        bank=output / "bank",
        overrides={"finetune.precision": precision, "finetune.steps": steps},
        evaluation="cifar10",
        resume=(folder / "run.json").exists(),
    )
    top1 = result.metrics["quantized"]["top1"]
    count = result.metrics["quantized"]["count"]
    row = {
        "bits": bits,
        "precision": precision,
        "steps": steps,
        "top1": top1,
        "standard_error": math.sqrt(top1 * (100 - top1) / count),
        "fine_tuning_seconds": result.metrics["seconds"]["fine-tuning"],
    }
    record.write_text(json.dumps(row, indent=2) + "\n")
    return row


def main() -> None:
    """Run every precision of this device and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of runs and images")
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w3a3"])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    precisions = ["float32", *(["tf32"] if cuda else []), "bf16"]
    rows = [run(b, p, options.steps, options.output) for b in options.bits for p in precisions]
    print("| bits | precision | top-1 | standard error | fine-tuning s |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['bits']} | {row['precision']} | {row['top1']:.2f} | "
            f"{row['standard_error']:.2f} | {row['fine_tuning_seconds']:.0f} |"
        )
    if options.json:
        device = torch.cuda.get_device_name() if cuda else platform.machine()
        report = {"device": device, "threads": torch.get_num_threads(), "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
