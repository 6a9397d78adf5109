"""Every public op on small tensors, against the reference on the CPU: values and gradients.

    python -m benchmarks.every_op --device cuda --capture --json ops.json

Quick enough to run under a memory checker. With --capture each call is also captured in a CUDA
graph, replayed and compared with a plain call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synq_fast import ops, reference

from . import cuda_timing

Inputs = tuple[Tensor, ...]
Function = Callable[..., Any]
# Of the largest value, for what is not exact: that is compared with the reference in float64.
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
BACKENDS = {"cpu": ["cpu"], "cuda": ["cuda", "triton"]}


@dataclass(frozen=True)
class Case:
    """How an op is called.

    Attributes:
        call: Calls the op of `synq_fast.ops` or `synq_fast.reference` that is given first.
        inputs: Makes the inputs, one tuple for each call.
        differentiable: How many leading inputs get a gradient.
        exact: Whether all backends must give the same bits.
    """

    call: Callable[..., Any]
    inputs: Callable[[], list[Inputs]]
    differentiable: int = 1
    exact: bool = False


@dataclass(frozen=True)
class Verdict:
    """What became of an op on one backend; empty texts where all is well.

    Attributes:
        op: The op's name.
        backend: The backend that ran it.
        exact: Whether the same bits were demanded.
        wrong: How it differs from the reference, or the error.
        not_captured: Why a CUDA graph of it failed, or how its replay differs.
    """

    op: str
    backend: str
    exact: bool
    wrong: str = ""
    not_captured: str = ""

    @property
    def text(self) -> str:
        """What is wrong, or that nothing is."""
        captured = self.not_captured and f"not captured: {self.not_captured}"
        return "; ".join(filter(None, (self.wrong, captured))) or "right"


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _elementwise() -> list[Inputs]:
    odd, image = _noise(2053), _noise(3, 5, 7, 9)
    plain = [odd[:1], odd, odd[3:], image, image.contiguous(memory_format=torch.channels_last)]
    return [(x,) for x in (*plain, odd.half(), odd[1:].bfloat16(), torch.empty(0, 4))]


def _not_empty() -> list[Inputs]:
    return _elementwise()[:-1]


def _planes() -> list[Inputs]:
    return [(_noise(*shape),) for shape in ((2, 3, 8, 8), (1, 3, 33, 20), (2, 1, 32, 32))]


def _maps() -> list[Inputs]:
    shapes = ((2, 5, 4, 4), (3, 33, 7, 7), (1, 1, 3, 5))
    return [(_noise(*s), _noise(*s[::-1]).reshape(s), _noise(s[0]).abs()) for s in shapes]


def _targets() -> list[Inputs]:
    return [(a, g, torch.rand(len(a), 1, 9, 12)) for a, g, _ in _maps()]


def _logits() -> list[Inputs]:
    sizes = ((1, 2), (5, 10), (7, 1001))
    return [(_noise(b, c), _noise(b, c) * 2, torch.arange(b) % c) for b, c in sizes]


def _layers() -> list[Inputs]:
    shapes = ((2, 3, 5, 7), (33, 5), (4, 65, 9, 9))
    return [(_noise(*s), _noise(s[1]), _noise(s[1]).abs()) for s in shapes]


def _with_and_without_residual(namespace: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    arguments = x, weight, bias, 0.0, 2.0, 4
    return tuple(
        namespace.affine_relu_fake_quantize(*arguments, residual=residual)
        for residual in (None, x * 0.5)
    )


def _averaged(namespace: Any, x: Tensor) -> Any:
    state = [torch.zeros((), device=x.device) for _ in range(2)]
    step = torch.zeros((), dtype=torch.int64, device=x.device)
    namespace.update_range(x, *state, step)
    namespace.update_range(x + 1, *state, step)
    return namespace.read_range(*state, step)


# A further op is one entry; `tests/benchmarks` looks for it.
CASES = {
    "fake_quantize": Case(
        lambda n, x: n.fake_quantize(x, -1.5, 2.0, 4, ste="clip"), _elementwise, exact=True
    ),
    "fake_quantize_dynamic": Case(
        lambda n, x: n.fake_quantize_dynamic(x, 4, axis=0)[0], _not_empty, exact=True
    ),
    "quantize_codes": Case(
        lambda n, x: n.quantize_codes(x, -1.5, 2.0, 8), _elementwise, 0, exact=True
    ),
    "fake_quantize_learned": Case(
        lambda n, x: n.fake_quantize_learned(x, 4.0, 1.0, 4), _elementwise, exact=True
    ),
    "relu_fake_quantize": Case(
        lambda n, x: n.relu_fake_quantize(x, 0.0, 2.0, 4, ste="clip"), _elementwise, exact=True
    ),
    "affine_relu_fake_quantize": Case(_with_and_without_residual, _layers, exact=True),
    "update_range": Case(_averaged, _not_empty, 0, exact=True),
    "search_range": Case(lambda n, x: n.search_range(x, 4, candidates=20), _not_empty, 0),
    "low_pass": Case(lambda n, x: n.low_pass(x, 5.0), _planes),
    "grad_cam": Case(lambda n, a, g, _: n.grad_cam(a, g, (9, 12)), _maps),
    "grad_cam_plus_plus": Case(lambda n, a, g, s: n.grad_cam_plus_plus(a, g, s, (9, 12)), _maps),
    "layer_cam": Case(lambda n, a, g, _: n.layer_cam(a, g, (9, 12)), _maps),
    "hires_cam": Case(lambda n, a, g, _: n.hires_cam(a, g, (9, 12)), _maps),
    "cam_alignment_loss": Case(lambda n, a, g, t: n.cam_alignment_loss(a, g, t), _targets),
    "distillation_loss": Case(
        lambda n, s, t, y: n.distillation_loss(s, t, y, temperature=2.0), _logits, 2
    ),
    "channel_moments": Case(lambda n, x, *_: n.channel_moments(x), _layers),
    "total_variation": Case(
        lambda n, x: n.total_variation(x),
        lambda: [(_noise(*s),) for s in ((1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 32, 32))],
    ),
    "bn_statistics_loss": Case(lambda n, x, m, v: n.bn_statistics_loss(x, m, v), _layers),
    "bn_statistics_losses": Case(
        lambda n, x, m, v: n.bn_statistics_losses([x, x + 1], [m, -m], [v, 2 * v]), _layers
    ),
    "patch_similarity_entropy": Case(
        lambda n, x: n.patch_similarity_entropy(x),
        lambda: [(_noise(*s),) for s in ((1, 1, 4), (2, 5, 16), (3, 50, 33))],
    ),
}
# read_range is called with update_range.
COVERED = {*CASES, "read_range"}


def results(case: Case, namespace: Any, inputs: Inputs, device: str) -> list[Tensor]:
    """The op's outputs and its gradients, on ``device``."""
    leaves = [x.detach().to(device) for x in inputs]
    trained = [x.requires_grad_() for x in leaves[: case.differentiable]]
    given = case.call(namespace, *leaves)
    outputs = list(given) if isinstance(given, (tuple, list)) else [given]
    # Weights of each element its own, so that gradients in the wrong place differ.
    terms = [
        (y.double() * torch.linspace(0.5, 1.5, y.numel(), device=device).view(y.shape)).sum()
        for y in outputs
        if y.requires_grad
    ]
    gradients: Sequence[Tensor | None] = ()
    if terms:
        gradients = torch.autograd.grad(torch.stack(terms).sum(), trained, allow_unused=True)
    return [*(y.detach() for y in outputs), *(g for g in gradients if g is not None)]


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> str:
    """What differs, or an empty text."""
    if len(actual) != len(expected):
        return f"{len(actual)} results and gradients, the reference has {len(expected)}"
    for mine, theirs in zip(actual, expected, strict=True):
        wanted = theirs.cpu() if exact else theirs.cpu().to(mine.dtype)
        half = mine.dtype in (torch.float16, torch.bfloat16)
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        bound = 0.0 if exact else (HALF_TOLERANCE if half else TOLERANCE) * largest + 1e-7
        try:
            torch.testing.assert_close(mine.cpu(), wanted, rtol=0, atol=bound, equal_nan=True)
        except AssertionError as error:
            return " ".join(str(error).split())
    return ""


def check(op: str, backend: str, device: str, capture: bool = False) -> Verdict:
    """Compare an op on one backend with the reference on the CPU."""
    case = CASES[op]
    wrong = not_captured = ""
    try:
        with ops.backend(backend):
            for inputs in case.inputs():
                expected = results(case, reference, inputs if case.exact else _wide(inputs), "cpu")
                actual = results(case, ops, inputs, device)
                wrong = wrong or difference(actual, expected, case.exact)
                if capture and not not_captured:
                    not_captured = captured_difference(case, inputs, device)
    except Exception as error:
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Verdict(op, backend, case.exact, wrong, not_captured)


def _wide(inputs: Inputs) -> Inputs:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def captured_difference(case: Case, inputs: Inputs, device: str) -> str:
    """How the replay of a captured call differs from a plain one, or why it cannot be captured."""
    on_device = tuple(x.to(device) for x in inputs)
    captured: list[Tensor] = []

    def call() -> None:
        captured[:] = results(case, ops, on_device, device)

    try:
        cuda_timing.captured([call], 1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return difference(captured, results(case, ops, on_device, device), exact=True)


def backends(op: str, device: str) -> list[str]:
    """The backends that run an op on a device here."""
    available = ops.available_backends()
    return [name for name in BACKENDS[device] if available[name] is None]


def verdicts_of(op: str, wanted: Sequence[str], device: str, capture: bool) -> list[Verdict]:
    """The verdicts of an op on every backend that is wanted; one that is missing is wrong."""
    if not hasattr(ops, op):
        return [Verdict(op, "none", CASES[op].exact, "this installation has no such op")]
    found = backends(op, device)
    reasons = ops.available_backends()
    missing = [
        Verdict(op, name, CASES[op].exact, reasons.get(name) or "no kernel of it is built here")
        for name in wanted
        if name not in found
    ]
    checked = [name for name in found if name in wanted]
    return [*missing, *(check(op, name, device, capture) for name in checked)]


def in_a_process(op: str, backend: str | None, device: str, capture: bool) -> list[Verdict]:
    """`verdicts_of` in a process of its own: several at a time, and none ends the others."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "verdicts.json"
        command = [sys.executable, "-m", __spec__.name, "--device", device, "--op", op]
        command += ["--json", str(file)] + ["--capture"] * capture
        command += ["--backend", backend] if backend else []
        done = subprocess.run(command, capture_output=True, text=True)
        if file.exists():
            return [Verdict(**fields) for fields in json.loads(file.read_text())["verdicts"]]
    last = (done.stderr.strip().splitlines() or [""])[-1]
    wrong = f"its process ended with status {done.returncode}: {last}"
    return [Verdict(op, backend or device, CASES[op].exact, wrong)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the ops named on the command line; 1 if one is wrong, or a backend is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", choices=("cpu", "cuda", "triton"), help="only this one")
    parser.add_argument("--op", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--capture", action="store_true", help="in a CUDA graph too")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each op")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device on this machine")
    verdicts: list[Verdict] = []
    for found in _each(options):
        verdicts += found
        for verdict in found:
            print(f"{verdict.op} ({verdict.backend}): {verdict.text}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"verdicts": [asdict(verdict) for verdict in verdicts]}
            options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if any(verdict.wrong or verdict.not_captured for verdict in verdicts) else 0


def _each(options: argparse.Namespace) -> Iterator[list[Verdict]]:
    """The verdicts of each op, as soon as they are there."""
    choice = options.backend, options.device, options.capture
    if options.jobs > 1 and len(options.op) > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            yield from pool.map(lambda op: in_a_process(op, *choice), options.op)
        return
    wanted = [options.backend] if options.backend else BACKENDS[options.device]
    for op in options.op:
        yield verdicts_of(op, wanted, options.device, options.capture)


if __name__ == "__main__":
    sys.exit(main())
