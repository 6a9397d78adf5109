"""How fast each op moves its bytes, in under a minute: no compilation, no rivals but a copy.

    python -m benchmarks.bandwidth --backend cuda --json bandwidth.json

In the layouts and types that the engine runs, which the suites do not all have. A row's bytes are
what the op cannot but read and write once; the file is written after each row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synq_fast import ops

from . import harness
from .results_file import environment

Call = Callable[[], object]
ROUNDS = 5


@dataclass(frozen=True)
class Work:
    """One row to be measured."""

    name: str
    nbytes: int
    call: Call


@dataclass(frozen=True)
class Measured:
    """What became of it; without a time, why."""

    name: str
    backend: str
    nbytes: int
    seconds: float | None = None
    of_copy: float | None = None
    how: str = ""

    @property
    def text(self) -> str:
        """One line."""
        title = f"{self.name:<52} {self.backend:<7}"
        if self.seconds is None or self.of_copy is None:
            return f"{title} FAILED: {self.how}"
        rate = self.nbytes / self.seconds / 1e9
        return f"{title} {1e6 * self.seconds:10.1f} us {rate:7.0f} GB/s {self.of_copy:5.2f} of copy"


def _noise(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    generator = torch.Generator(harness.DEVICE).manual_seed(sum(shape))
    x = torch.randn(shape, device=harness.DEVICE, generator=generator).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, device=harness.DEVICE)


def _with_gradient(call: Callable[[], Any], inputs: Sequence[Tensor]) -> Call:
    def both() -> object:
        outputs = call()
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = tuple(y for y in outputs if y.requires_grad)
        return torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])

    return both


def activations(batch: int) -> Iterator[Work]:
    """What is done to a layer's (B, 64, 56, 56) output, in each layout and type."""
    for last in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            yield from _activation(batch, last, dtype)


def _activation(batch: int, last: bool, dtype: torch.dtype) -> Iterator[Work]:
    bits = 4
    kind = f"{'nhwc' if last else 'nchw'} {str(dtype).removeprefix('torch.')}"
    x, residual = (_noise(batch, 64, 56, 56, dtype=dtype, last=last) for _ in range(2))
    low, high = _scalar(-2.5), _scalar(2.5)
    lows, highs = low.repeat(64), high.repeat(64)
    n = x.nbytes

    def work(name: str, passes: int, call: Call) -> Work:
        return Work(f"{name}, {kind}", passes * n, call)

    yield work("fake_quantize", 2, lambda: ops.fake_quantize(x, low, high, bits))
    yield work(
        "fake_quantize by channel",
        2,
        lambda: ops.fake_quantize(x, lows, highs, bits, axis=1),
    )
    # Where nothing is quantized to zero: a division's slow path would show.
    yield work(
        "fake_quantize without zeros",
        2,
        lambda: ops.fake_quantize(x, low + 7, high + 9, bits),
    )
    yield work("relu_fake_quantize", 2, lambda: ops.relu_fake_quantize(x, 0 * low, high, bits))
    state = (_scalar(0.0), _scalar(0.0), torch.zeros_like(low, dtype=torch.int64))
    yield work("update_range", 1, lambda: ops.update_range(x, *state))
    yield work("channel_moments", 1, lambda: ops.channel_moments(x))
    mean, variance = torch.zeros_like(lows), torch.ones_like(lows)
    yield work("bn_statistics_loss", 1, lambda: ops.bn_statistics_loss(x, mean, variance))
    leaf, other = x.detach().requires_grad_(), residual.requires_grad_()
    yield work(
        "bn_statistics_loss with gradient",
        3,
        _with_gradient(lambda: ops.bn_statistics_loss(leaf, mean, variance), [leaf]),
    )
    weight, bias = (torch.ones_like(lows).requires_grad_() for _ in range(2))
    yield work(
        "affine, residual, relu, fq with gradients",
        8,
        _with_gradient(
            lambda: ops.affine_relu_fake_quantize(
                leaf, weight, bias, 0.0, 2.5, bits, residual=other
            ),
            [leaf, other, weight, bias],
        ),
    )
    scale, zero = _scalar(3.0).requires_grad_(), _scalar(0.0).requires_grad_()
    yield work(
        "fake_quantize_learned with gradients",
        5,
        _with_gradient(
            lambda: ops.fake_quantize_learned(leaf, scale, zero, bits),
            [leaf, scale, zero],
        ),
    )
    chance = {"keep": 0.5, "seed": torch.zeros_like(low, dtype=torch.int64)}
    yield work(
        "fake_quantize_learned with gradients, keep 0.5",
        5,
        _with_gradient(
            lambda: ops.fake_quantize_learned(leaf, scale, zero, bits, **chance),
            [leaf, scale, zero],
        ),
    )
    yield work("random_mix", 3, lambda: ops.random_mix(x, residual, **chance))


def others(batch: int) -> Iterator[Work]:
    """Weights, images, maps, logits and tokens."""
    weights = _noise(32 * batch, 4096)
    yield Work(
        "fake_quantize_dynamic, weights by row",
        2 * weights.nbytes,
        lambda: ops.fake_quantize_dynamic(weights, 4, axis=0),
    )
    sample = _noise(65_536)
    yield Work("search_range, 65,536 values", sample.nbytes, lambda: ops.search_range(sample, 4))
    v = _noise(4 * batch, 4608).requires_grad_()
    codes = torch.zeros(v.shape, dtype=torch.int8, device=harness.DEVICE)
    scale = torch.ones(len(v), device=harness.DEVICE).requires_grad_()
    yield Work(
        "soft_round with gradients",
        22 * v.numel(),
        _with_gradient(lambda: ops.soft_round(v, codes, scale, 0.0, 4, 3.0), [v, scale]),
    )
    small = _noise(batch, 16, 32, 32, last=True)
    mean, variance = torch.zeros(16, device=harness.DEVICE), torch.ones(16, device=harness.DEVICE)
    yield Work(
        "bn_statistics_loss, 16 channels of 32x32, nhwc",
        small.nbytes,
        lambda: ops.bn_statistics_loss(small, mean, variance),
    )
    for side, cutoff in ((224, 80.0), (32, 8.0)):
        for last in (False, True):
            x = _noise(batch, 3, side, side, last=last)
            name = f"low_pass {side}, {'nhwc' if last else 'nchw'}"
            yield Work(name, 2 * x.nbytes, lambda x=x, cutoff=cutoff: ops.low_pass(x, cutoff))
    for last in (False, True):
        layout = "nhwc" if last else "nchw"
        a, g = (_noise(batch, 2048, 7, 7, last=last) for _ in range(2))
        target = torch.rand(batch, 1, 224, 224, device=harness.DEVICE)
        moved, score = 2 * a.nbytes + target.nbytes, torch.zeros(batch, device=harness.DEVICE)
        yield Work(f"grad_cam, {layout}", moved, lambda a=a, g=g: ops.grad_cam(a, g, (224, 224)))
        yield Work(
            f"grad_cam_plus_plus, {layout}",
            moved,
            lambda a=a, g=g, score=score: ops.grad_cam_plus_plus(a, g, score, (224, 224)),
        )
        leaf = a.detach().requires_grad_()
        yield Work(
            f"cam_alignment_loss with gradient, {layout}",
            moved + a.nbytes,
            _with_gradient(
                lambda leaf=leaf, g=g, target=target: ops.cam_alignment_loss(leaf, g, target),
                [leaf],
            ),
        )
    student, teacher = _noise(64 * batch, 1000).requires_grad_(), _noise(64 * batch, 1000)
    labels = torch.arange(64 * batch, device=harness.DEVICE) % 1000
    yield Work(
        "distillation_loss with gradient",
        3 * teacher.nbytes,
        _with_gradient(lambda: ops.distillation_loss(student, teacher, labels)[:2], [student]),
    )
    tokens = _noise(batch, 196, 384).requires_grad_()
    yield Work(
        "patch_similarity_entropy with gradient",
        2 * tokens.nbytes,
        _with_gradient(lambda: ops.patch_similarity_entropy(tokens), [tokens]),
    )


def measure(work: Work, backend: str, copied: float) -> Measured:
    """The time of a row on one backend; ``copied`` is the copy's bytes per second."""
    try:
        with ops.backend(backend):
            timing = harness.interleave({"ours": work.call}, rounds=ROUNDS)["ours"]
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return Measured(work.name, backend, work.nbytes, how=reason)
    share = work.nbytes / timing.median / copied
    return Measured(work.name, backend, work.nbytes, timing.median, share, timing.how)


def copy_rate(nbytes: int) -> float:
    """Bytes that a plain copy reads and writes in a second."""
    x = torch.zeros(nbytes // 4, device=harness.DEVICE)
    return 2 * x.nbytes / harness.interleave({"copy": x.clone}, rounds=ROUNDS)["copy"].median


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every row; 1 if one could not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backend", choices=("cpu", "cuda", "triton"), required=True)
    parser.add_argument("--batch", type=int, default=256, help="images (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each row")
    options = parser.parse_args(arguments)
    harness.use_device("cpu" if options.backend == "cpu" else "cuda")
    copied = copy_rate(1 << 22 if options.backend == "cpu" else 1 << 30)
    print(f"copy: {copied / 1e9:.0f} GB/s", flush=True)
    rows: list[Measured] = []
    for make in (activations, others):
        for work in make(options.batch):
            if options.only not in work.name:
                continue
            rows.append(measure(work, options.backend, copied))
            print(rows[-1].text, flush=True)
            if options.json:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                content = {
                    "environment": environment(),
                    "copy": copied,
                    "bandwidth": [asdict(row) for row in rows],
                }
                options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if not rows or any(row.seconds is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
