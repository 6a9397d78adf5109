"""What the processes of tests/distributed/test_distributed.py do."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import synq_fast
from synq_fast import cli
from synq_fast.distributed import GroupRanks, joined
from synq_fast.errors import NonFiniteLossError, SynqFastError
from synq_fast.finetune import training as training_module
from synq_fast.finetune.data_parallel import BatchMean, part_of_batch
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.tiny import (
    SHAPE,
    TINY_OVERRIDES,
    labelled,
    run,
    tiny_images,
    tiny_labels,
    tiny_net,
    tiny_pair,
    tiny_recipe,
)
from tests.transformers import tiny_vit

WORLDS = (1, 2, 3)
# Five shards, two batches of centre images, and parts of 1, 1 and 2 images on three ranks.
OVERRIDES: dict[str, object] = {
    "synthesis.images": 10,
    "synthesis.batch_size": 2,
    "synthesis.centers.weight": 0.1,
    "synthesis.centers.steps": 3,
}
POLICIES = ("ema", "minmax", "mse")
training_module.LOG_EVERY = 2


def _state(result: synq_fast.QuantizationResult) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def _error(work: Callable[[], object]) -> tuple[str, str]:
    try:
        work()
    except SynqFastError as error:
        return type(error).__name__, str(error)
    return "", ""


def whole_run(folder: Path, rank: int, world: int) -> dict[str, Any]:
    result = run(
        overrides=OVERRIDES, output=folder / f"run-{world}", evaluation=labelled(), evaluate_every=2
    )
    accuracies = {k: v for k, v in result.metrics.items() if k != "seconds"}
    return {"model": _state(result), "history": result.history, "metrics": accuracies}


def without_folder(folder: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    return _state(run(overrides=OVERRIDES))


def own_file_systems(folder: Path, rank: int, world: int) -> list[torch.Tensor]:
    """Each rank sees a folder of its own, and there are fewer shards than three ranks."""
    overrides = {**TINY_OVERRIDES, **OVERRIDES, "synthesis.images": 4}
    output = folder / f"bank-{world}-{rank}"
    bank = synq_fast.synthesize(
        tiny_net(), output, "synq-digits", SHAPE, overrides=overrides, progress=False
    )
    return [bank.images, bank.labels]


def online(folder: Path, rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    """A generator on every rank, each trained on all images; the model on a part of them."""
    few = {"generator.steps": 2, "generator.latent": 5, "finetune.learning_rate": 1e-3}
    return {
        str(steps): _state(run(recipe="gdfq-digits", overrides={**few, "finetune.steps": steps}))
        for steps in (0, 3)
    }


def in_turns(folder: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Two shards made again against the model, which all ranks train, in one more turn."""
    overrides = {
        "synthesis.images": 4,
        "synthesis.batch_size": 2,
        "synthesis.augment_roll": 0,
        "synthesis.refresh.every": 2,
        "synthesis.refresh.steps": 2,
        "finetune.steps": 3,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        output = folder / f"turns-{world}"
        result = run(tiny_vit(), recipe="psaq-v2", overrides=overrides, output=output)
    return _state(result)


def of_methods(folder: Path, rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics of the model's own, then training on mixed images with the teacher's labels."""
    overrides = {
        "stages": ["synthesis", "calibration", "norms", "finetune"],
        "norms.images": 6,
        "finetune.mixup": 1.0,
        "finetune.distillation.label_weight": 0.0,
        "finetune.pseudo_labels.entropy_thresholds": [1.0, 0.98],
    }
    return {
        str(steps): _state(run(overrides={**overrides, "finetune.steps": steps}))
        for steps in (0, 3)
    }


def following(folder: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Images of which each batch keeps a distance from those before it."""
    apart = {"weight": 1.0, "low": 1.5, "high": 2.0}
    overrides = {f"synthesis.margin.{key}": value for key, value in apart.items()}
    return _state(run(overrides={**overrides, "finetune.steps": 0}))


def found_widths(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Widths from a generator's images, which are drawn once more for the ranges."""
    few = {"generator.steps": 2, "generator.latent": 5, "finetune.steps": 0}
    result = run(recipe="gdfq-digits", bits="auto:3.5", overrides=few)
    return {"model": _state(result), "widths": result.metrics["coverage"]["widths"]}


def reconstructed(folder: Path, rank: int, world: int) -> dict[str, dict[str, Any]]:
    """Half is dropped and mixed: each rank draws for its part what one draws for the batch."""
    few = {"images": 8, "steps": 3, "batch_size": 4, "keep": 0.5, "mix": 0.5, "memory": "files",
           "global_weight": 0.5}  # fmt: skip
    from_file, files = torch.from_file, []

    def noted(path: str, **options: Any) -> torch.Tensor:
        files.append(str(Path(path).parent.relative_to(folder)))
        return from_file(path, **options)

    done = {}
    torch.from_file = noted
    for rounding in ("soft", "straight"):
        overrides = {f"blocks.{key}": value for key, value in few.items()}
        overrides |= {"blocks.rounding": rounding, "finetune.steps": 0}
        output = folder / f"{rounding}-{world}"
        result = run(recipe="synq-fast-digits", overrides=overrides, output=output)
        done[rounding] = {"model": _state(result), "history": result.history}
    torch.from_file = from_file
    return {**done, "files": {"folders": sorted(set(files))}}


def ranges(folder: Path, rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        policy: _state(run(overrides={"quantization.range": policy, "finetune.steps": 0}))
        for policy in POLICIES
    }


def gradients(folder: Path, rank: int, world: int) -> dict[str, Any]:
    recipe = tiny_recipe(quantization__learn_ranges=True)
    teacher, student, points = tiny_pair(recipe)
    step = Step(teacher, student, points, recipe.finetune)
    images, labels = tiny_images(8), tiny_labels(8)
    with joined(torch.device("cpu")) as ranks:
        part = part_of_batch(ranks, 8)
        losses = step(images[part], labels[part])
        if world > 1:
            mean = BatchMean(ranks, step.parameters, (part.stop - part.start) / 8)
            averaged = mean(torch.stack(list(losses.values())))
            losses = dict(zip(losses, averaged, strict=True))
    named = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    return {"gradients": named, "losses": losses}


def clipped_step(folder: Path, rank: int, world: int) -> dict[str, torch.Tensor]:
    return _state(run(overrides={"finetune.steps": 1, "finetune.max_gradient_norm": 0.5}))


def resumed(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """Stopped at step 5; rank 0 alone sees the run folder when it goes on."""
    prepare = Training.prepare

    def stopping(self: Training, step: int) -> tuple[torch.Tensor, ...]:
        if step == 5:
            raise KeyboardInterrupt
        return prepare(self, step)

    output = folder / f"resumed-{world}" / (f"only-{rank}" if rank else "run")
    Training.prepare = stopping
    try:
        run(overrides=OVERRIDES, output=output)
    except KeyboardInterrupt:
        pass
    finally:
        Training.prepare = prepare
    dist.barrier()
    result = run(overrides=OVERRIDES, output=output, resume=True)
    files = sorted(path.name for path in output.iterdir())
    return {"model": _state(result), "history": result.history, "files": files}


def mistakes(folder: Path, rank: int, world: int) -> dict[str, tuple[str, str]]:
    def drifted() -> None:
        net = tiny_net()
        with torch.no_grad():
            # The smallest possible difference.
            net.fc.weight[0, 0] = torch.nextafter(net.fc.weight[0, 0], torch.tensor(9.0 * rank))
        ranks = GroupRanks(torch.device("cpu"))
        ranks.check_equal(tiny_net(), "before")
        ranks.check_equal(net, "after step 7")

    def rank_1_fails() -> None:
        batch = Synthesizer.batch
        if rank == 1:
            Synthesizer.batch = _not_finite
        try:
            run()
        finally:
            Synthesizer.batch = batch

    return {
        "other seed": _error(lambda: run(seed=rank)),
        "other teacher": _error(lambda: run(tiny_net(seed=rank))),
        "small batch": _error(lambda: run(overrides={"finetune.batch_size": 1})),
        "drifted": _error(drifted),
        "failed": _error(rank_1_fails),
    }


def _not_finite(*_: object) -> Any:
    raise NonFiniteLossError("the loss of rank 1 is not finite")


def in_every_world(rank: int, folder: Path) -> None:
    """Works alone, then in a group of two, then of three; saves what each piece returns."""
    torch.set_num_threads(1)
    parts = (
        whole_run,
        without_folder,
        own_file_systems,
        ranges,
        online,
        in_turns,
        of_methods,
        following,
        found_widths,
        reconstructed,
        gradients,
        clipped_step,
    )
    for world in WORLDS[rank:]:
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        done = {part.__name__: part(folder, rank, world) for part in parts}
        if world == 2:
            done |= {part.__name__: part(folder, rank, world) for part in (resumed, mistakes)}
        assert dist.is_initialized()
        dist.destroy_process_group()
        torch.save(done, folder / f"{world}-{rank}.pt")


def command_line() -> int:
    """The command of ``sys.argv``; rank 1 fails the first time and is killed the second time."""
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if os.environ["RANK"] == "1" and attempt == 0:
        Synthesizer.batch = _not_finite
    elif os.environ["RANK"] == "1" and attempt == 1:
        prepare = Training.prepare

        def killed(self: Training, step: int) -> tuple[torch.Tensor, ...]:
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return prepare(self, step)

        Training.prepare = killed
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command_line())
