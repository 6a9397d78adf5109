"""A model card: the page beside a file that says what it is."""

from __future__ import annotations

from collections.abc import Sequence

from synq_fast.deployment.report import ExportReport

_HEAD = """---
library_name: {library}
tags: [quantization, data-free, image-classification, {bits}]
---

# {name}, {bits}

Quantized by synq-fast {version} without data: it saw the float network and no image of its
training set.
"""


def model_card(
    report: ExportReport,
    *,
    name: str,
    version: str,
    recipe: str,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
    normalized: bool,
) -> str:
    """The card of a file in Markdown."""
    library = "onnx" if report.path.suffix == ".onnx" else "synq-fast"
    shape = " x ".join(map(str, input_shape))
    if normalized:
        preparation = "on a 0..1 scale; the file normalises them itself"
    else:
        preparation = (
            f"on a 0..1 scale, then minus {_row(mean)} and divided by {_row(std)}, channel by "
            f"channel"
        )
    lines = [
        _HEAD.format(library=library, bits=report.bits, name=name, version=version),
        "| | |",
        "|---|---|",
        f"| weights and activations | {report.bits} |",
        f"| recipe | {recipe} |",
        f"| placement of quantizers | {report.placement} |",
        f"| input | images {shape}, float32, {preparation} |",
        f"| output | {classes} logits |",
        f"| file | {report.bytes:,} bytes, "
        f"{100 * report.bytes / report.float_bytes:.1f} % of float32's |",
    ]
    if report.accuracy is not None:
        lines.append(f"| accuracy | {report.accuracy} |")
    if report.latency is not None:
        lines.append(f"| speed | {report.latency} |")
    for check in report.checks:
        head, *rest = check.lines()
        runtime, _, found = head.partition(": ")
        lines.append(f"| {runtime} | {'; '.join([found, *(r.strip() for r in rest)])} |")
    return "\n".join(lines) + "\n"


def _row(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
