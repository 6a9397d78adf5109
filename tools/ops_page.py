"""Write docs/ops.md: each op with its docstring, a picture of what it does and how fast it is.

    python tools/ops_page.py

Pictures are drawn by the ops on small data (`tools/op_pictures`); figures are those of the files in
`benchmarks/results`. `--text` writes the page without drawing.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.results_file import read_file  # noqa: E402  (found by the line before)
from benchmarks.rows import Comparison  # noqa: E402
from synq_fast import ops  # noqa: E402
from tools.op_pictures import canvas, filters, losses, maps, packing, quantizers, ranges  # noqa: E402

PAGE = ROOT / "docs" / "ops.md"
PICTURES = PAGE.with_suffix("")
_RESULTS = ROOT / "benchmarks" / "results"
_HEAD = """# Ops

Fused, differentiable, and exact: each has kernels for CPUs, CUDA and Triton (but `read_range`, a
formula of two numbers) and a twin in plain PyTorch with the same name in `synq_fast.reference`. All
work under `torch.compile(fullgraph=True)` and `torch.export`.

Each picture is drawn by its op. Below it stands how many times faster the op is than what the
columns name (below 1 it is slower), float32 on two CPU threads, with glibc's default allocator /
with freed memory kept: rows of `benchmarks/results`, measured at the commits that are named there;
[Speed](speed.md) says more. Made by `python tools/ops_page.py`.
"""
_BACKENDS = ("backend", "current_backend", "available_backends")


class Entry(NamedTuple):
    """What the page shows of an op besides its docstring."""

    picture: canvas.Picture
    suite: str | None = None
    """Measures it: `benchmarks/bench_<suite>.py`; None where it has no kernel."""
    case: str = ""
    """The row of the suite's result file."""


_LARGE = "16x64x56x56 contiguous, forward and backward"
_MAPS = "16x512x7x7 contiguous"
_STEP = "8 bits, forward and backward"
SECTIONS: dict[str, dict[str, Entry]] = {
    "Quantize": {
        "fake_quantize": Entry(
            quantizers.fake_quantize, "fake_quantize", "per_tensor 16x64x56x56 4 bits"
        ),
        "fake_quantize_dynamic": Entry(
            quantizers.fake_quantize_dynamic,
            "fake_quantize_dynamic",
            "asymmetric 512x512x3x3 axis 0",
        ),
        "fake_quantize_learned": Entry(
            quantizers.fake_quantize_learned,
            "fake_quantize_learned",
            "per_tensor 16x64x56x56 4 bits, forward and backward",
        ),
        "quantize_codes": Entry(
            quantizers.quantize_codes, "call_overhead", "quantize_codes 4x6, no gradient"
        ),
        "pack_codes": Entry(packing.pack_codes, "pack_codes", "pack_codes 512x4608, 4 bits"),
        "unpack_codes": Entry(packing.unpack_codes, "pack_codes", "unpack_codes 512x4608, 4 bits"),
        "relu_fake_quantize": Entry(
            quantizers.relu_fake_quantize, "relu_fake_quantize", f"relu {_LARGE}"
        ),
        "affine_relu_fake_quantize": Entry(
            quantizers.affine_relu_fake_quantize,
            "relu_fake_quantize",
            f"affine_residual_relu {_LARGE}",
        ),
        "gelu_fake_quantize": Entry(
            quantizers.gelu_fake_quantize,
            "transformer_fake_quantize",
            f"gelu 8x197x768 {_STEP}",
        ),
        "silu_fake_quantize": Entry(
            quantizers.silu_fake_quantize,
            "transformer_fake_quantize",
            f"silu 8x197x768 {_STEP}",
        ),
        "hardswish_fake_quantize": Entry(
            quantizers.hardswish_fake_quantize,
            "transformer_fake_quantize",
            f"hardswish 8x197x768 {_STEP}",
        ),
        "fake_quantize_log": Entry(
            quantizers.fake_quantize_log,
            "transformer_fake_quantize",
            "log 8x3x197x197 4 bits, forward and backward",
        ),
        "fake_quantize_minifloat": Entry(
            quantizers.fake_quantize_minifloat,
            "transformer_fake_quantize",
            "minifloat 8x197x768 4 bits, forward and backward",
        ),
        "layer_norm_fake_quantize": Entry(
            quantizers.layer_norm_fake_quantize,
            "transformer_fake_quantize",
            f"layer_norm 8x197x192 {_STEP}",
        ),
        "softmax_fake_quantize": Entry(
            quantizers.softmax_fake_quantize,
            "transformer_fake_quantize",
            f"softmax 8x3x197x197 {_STEP}",
        ),
        "quantized_attention": Entry(
            quantizers.quantized_attention,
            "quantized_attention",
            "8x3x197x64 4 bits, forward and backward",
        ),
        "random_mix": Entry(
            quantizers.random_mix, "random_mix", "32x64x56x56, forward and backward"
        ),
        "soft_round": Entry(
            quantizers.soft_round, "soft_round", "512x512x3x3 4 bits, forward and backward"
        ),
    },
    "Find ranges": {
        "search_range": Entry(ranges.search_range, "search_range", "16x64x56x56 4 bits"),
        "update_range": Entry(ranges.update_range, "update_range", "16x64x56x56"),
        "read_range": Entry(ranges.read_range),
    },
    "Filter": {
        "low_pass": Entry(filters.low_pass, "low_pass", "gaussian 16x3x224x224 cutoff 80"),
        "total_variation": Entry(
            filters.total_variation, "total_variation", "16x3x224x224, forward and backward"
        ),
    },
    "Explain": {
        "grad_cam": Entry(maps.grad_cam, "grad_cam", f"grad_cam {_MAPS} to 224x224"),
        "grad_cam_plus_plus": Entry(
            maps.grad_cam_plus_plus, "grad_cam", f"grad_cam_plus_plus {_MAPS} to 224x224"
        ),
        "layer_cam": Entry(maps.layer_cam, "grad_cam", f"layer_cam {_MAPS} to 224x224"),
        "hires_cam": Entry(maps.hires_cam, "grad_cam", f"hires_cam {_MAPS} to 224x224"),
        "cam_alignment_loss": Entry(
            maps.cam_alignment_loss, "cam_alignment_loss", f"{_MAPS} target 224x224"
        ),
    },
    "Compare": {
        "distillation_loss": Entry(
            losses.distillation_loss, "distillation_loss", "16x1000 forward and backward"
        ),
        "bn_statistics_loss": Entry(
            losses.bn_statistics_loss, "bn_statistics_loss", "64x64x56x56 contiguous"
        ),
        "bn_statistics_losses": Entry(
            losses.bn_statistics_losses, "bn_statistics_loss", "resnet20 statistics, batch 32"
        ),
        "channel_moments": Entry(losses.channel_moments, "channel_moments", _LARGE),
        "patch_similarity_entropy": Entry(
            losses.patch_similarity_entropy,
            "patch_similarity_entropy",
            "with backward 32x196x192",
        ),
        "inter_head_similarity_loss": Entry(
            losses.inter_head_similarity_loss,
            "inter_head_similarity_loss",
            "with backward 8x12x196x196",
        ),
        "structural_similarity_loss": Entry(
            losses.structural_similarity_loss,
            "structural_similarity_loss",
            "with backward 16x12x196x64",
        ),
    },
}
ENTRIES = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


def render() -> str:
    """The page."""
    parts = [_HEAD]
    for title, entries in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for name, entry in entries.items():
            alt = " ".join((inspect.getdoc(entry.picture) or "").split())
            parts.append(f"\n{_directive(name)}\n![{alt}]({PICTURES.name}/{name}.png)\n")
            parts.append(f"\n{speed(name)}")
    parts.append("\n## Choose a backend\n")
    parts += [f"\n{_directive(name)}" for name in _BACKENDS]
    return "".join(parts)


def speed(name: str) -> str:
    """A table of one row, or what there is instead of it."""
    entry = ENTRIES[name]
    if entry.suite is None:
        return "Speed: no benchmark measures it.\n"
    command = f"`synq-fast bench ops --op {entry.suite}`"
    rows = {row.allocator: row for row in _rows(entry.suite) if row.case == entry.case}
    if "default" not in rows:
        raise KeyError(f"{entry.suite}: no row {entry.case!r}; correct the entry of {name}")
    every = [rows[key].speed_ups() for key in ("default", "raised") if key in rows]
    rivals = [name for name in every[0] if all(name in found for found in every)]
    cells = [" / ".join(_shown(found[rival]) for found in every) for rival in rivals]
    lines = [(f"{command}: times faster than", *rivals), ("---", *("--:" for _ in rivals))]
    ours = rows["default"].ours or ""
    case = entry.case if ours == "ours (cpu)" else f"{entry.case} ({ours})"
    lines.append((case, *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(ratio: float) -> str:
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


@cache
def _rows(suite: str) -> list[Comparison]:
    return read_file(_RESULTS / f"{suite}-cpu.json")[1]


def _directive(name: str) -> str:
    return f"::: {getattr(ops, name).__module__}.{name}\n"


def main(arguments: list[str] | None = None) -> None:
    """Draw the pictures and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="draw these ops only, e.g. low_pass")
    parser.add_argument("--text", action="store_true", help="draw nothing")
    options = parser.parse_args(arguments)
    PICTURES.mkdir(exist_ok=True)
    for name in [] if options.text else options.names or ENTRIES:
        canvas.save(ENTRIES[name].picture, PICTURES / f"{name}.png")
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
