"""Every run gives the same bits, on any number of threads; a GPU can record it without a wait."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from synq_fast import ops
from synq_fast.testing import CASES, Sample
from synq_fast.testing.conformance import lay_out, run, same_bits
from tests.conformance.targets import Target, parameters, using
from tests.recording import recorded

every_op = pytest.mark.parametrize("name", CASES)
# Below these no kernel shares its work.
LEAST = 20_000


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared_work(name: str) -> Iterator[Sample]:
    """The samples that are large enough to be shared, in both formats of images."""
    case = CASES[name]
    for sample in case.inputs():
        if sample.tensors[0].numel() >= LEAST and not sample.special:
            for layout in ("given", "channels_last"):
                tensors = lay_out(sample.tensors, layout, case.laid_out)
                if tensors is not None:
                    yield sample._replace(tensors=tensors)


def flat(results) -> list[torch.Tensor]:
    gradients = results.gradients.get("all results", ())
    return [*results.values, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("target", [p for p in parameters() if not p.values[0].slow])
@every_op
def test_runs_and_threads_change_no_bit(name: str, target: Target) -> None:
    if target.backend == "reference":
        pytest.skip("the order of PyTorch's own sums is PyTorch's")
    case = CASES[name]
    with using(target) as namespace:
        samples = list(shared_work(name))[:12]
        assert samples or name == "read_range"
        for sample in samples:
            tensors = [x.to(target.device) for x in sample.tensors]
            found = []
            for count in (1, 2, 3):
                with threads(count):
                    found.append(
                        flat(
                            run(
                                lambda *x, **o: case.call(namespace, *x, **o),
                                tensors,
                                sample.options,
                                case.differentiable,
                            )
                        )
                    )
            for other in found[1:]:
                for mine, theirs in zip(found[0], other, strict=True):
                    assert same_bits(mine, theirs) == "", sample.reason


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@every_op
def test_capture_in_a_cuda_graph(name: str, backend: str) -> None:
    """Recorded while a wait for the device is an error, and replayed on other numbers."""
    case, sample = CASES[name], CASES[name].typical()
    with using(Target(backend, "cuda")):
        tensors = [x.cuda() for x in sample.tensors]
        options = sample.options

        def step() -> list[torch.Tensor]:
            return flat(
                run(lambda *x, **o: case.call(ops, *x, **o), tensors, options, case.differentiable)
            )

        graph, captured = recorded(step)
        with torch.no_grad():
            tensors[0].copy_(tensors[0].flip(0) * 0.75)
        graph.replay()
        for mine, theirs in zip(captured, step(), strict=True):
            assert same_bits(mine, theirs) == ""
