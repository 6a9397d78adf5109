import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file

from synq_fast.distributed import ALONE, Ranks, is_first_process, joined, restarted
from synq_fast.errors import DistributedError, SynqFastError
from synq_fast.runtime.devices import chosen_device
from tests.rank_programs import OVERRIDES, POLICIES, WORLDS, in_every_world
from tests.tiny import SHAPE, TINY_OVERRIDES

ROOT = Path(__file__).parents[2]
EVERY_RANK = [(world, rank) for world in WORLDS for rank in range(world)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each rank of groups of one, two and three returned, and their common folder."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.multiprocessing.spawn(in_every_world, (folder,), nprocs=max(WORLDS))
    done = {(world, rank): torch.load(folder / f"{world}-{rank}.pt") for world, rank in EVERY_RANK}
    return done, folder


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def assert_close_records(found, expected, **tolerance) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (
            value if isinstance(value, str) else pytest.approx(value, **tolerance)
        )


# The bank and the ranges do not depend on the number of ranks


def test_any_number_of_ranks_makes_the_same_bank(outcomes):
    _, folder = outcomes
    alone = sorted((folder / "run-1" / "bank").iterdir())
    assert [p.name for p in alone if p.suffix != ".json"] == [
        *(f"batch-{index:05d}.jsonl" for index in range(5)),
        *(f"centers-{index:05d}.safetensors" for index in range(2)),
        *(f"shard-{index:05d}.safetensors" for index in range(5)),
    ]
    for world in WORLDS[1:]:
        bank = sorted((folder / f"run-{world}" / "bank").iterdir())
        assert [p.name for p in bank] == [p.name for p in alone]
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(bank, alone, strict=True))


def test_bank_without_a_shared_file_system_and_with_idle_ranks(outcomes):
    done, folder = outcomes
    images, labels = done[1, 0]["own_file_systems"]
    assert len(images) == 4
    for world, rank in EVERY_RANK:
        found = done[world, rank]["own_file_systems"]
        assert torch.equal(found[0], images) and torch.equal(found[1], labels)
        shards = sorted(p.name for p in (folder / f"bank-{world}-{rank}").glob("shard-*"))
        assert shards == ["shard-00000.safetensors", "shard-00001.safetensors"]


@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_ranks_finds_the_same_ranges(outcomes, policy):
    done, _ = outcomes
    alone = done[1, 0]["ranges"][policy]
    assert alone["quantize_relu.range_max"] > alone["quantize_relu.range_min"]
    assert all(equal(done[each]["ranges"][policy], alone) for each in EVERY_RANK)


# Both parts follow from all images on every rank until training, which sees a part of each batch.
@pytest.mark.parametrize("name", ["online", "of_methods"])
@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_work_on_the_same_images_and_train_one_model(outcomes, world, name):
    done, _ = outcomes
    alone, first = done[1, 0][name], done[world, 0][name]
    for rank in range(world):
        found = done[world, rank][name]
        assert equal(found["0"], alone["0"]) and equal(found["3"], first["3"])
    for name, value in alone["3"].items():
        torch.testing.assert_close(first["3"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_make_images_in_turn_against_one_model(outcomes, world):
    done, folder = outcomes
    first = done[world, 0]["in_turns"]
    assert all(equal(done[world, rank]["in_turns"], first) for rank in range(world))
    for name, tolerance in (("bank", 0.0), ("bank-001", 0.02)):
        for shard in range(2):
            path = f"{name}/shard-{shard:05d}.safetensors"
            alone, found = (
                load_file(folder / f"turns-{n}" / path)["images"] for n in (WORLDS[0], world)
            )
            # Adam's first steps are of signs, which roundings of the model may turn.
            assert (alone - found).abs().mean() <= tolerance


def test_any_number_of_ranks_finds_the_same_widths(outcomes):
    done, _ = outcomes
    alone = done[1, 0]["found_widths"]
    assert len({*alone["widths"]["weights"].values()}) > 1
    for each in EVERY_RANK:
        found = done[each]["found_widths"]
        assert found["widths"] == alone["widths"] and equal(found["model"], alone["model"])


def test_batches_that_follow_each_other_are_the_same_on_any_number_of_ranks(outcomes):
    done, _ = outcomes
    alone = done[1, 0]["following"]
    assert all(equal(done[each]["following"], alone) for each in EVERY_RANK)


@pytest.mark.parametrize("rounding", ["soft", "straight"])
@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_reconstruct_one_model(outcomes, world, rounding):
    """Also where three ranks have parts of 1, 1 and 2 images, and half of all is left to chance."""
    done, _ = outcomes
    alone, first = (done[each]["reconstructed"][rounding] for each in ((1, 0), (world, 0)))
    for rank in range(world):
        other = done[world, rank]["reconstructed"][rounding]
        assert equal(other["model"], first["model"]) and other["history"] == first["history"]
    for name, value in alone["model"].items():
        torch.testing.assert_close(first["model"][name], value, rtol=1e-5, atol=1e-5)
    assert len(first["history"]) == len(alone["history"]) == 3
    for found, expected in zip(first["history"], alone["history"], strict=True):
        assert_close_records(found, expected, rel=1e-4, abs=1e-6)


def test_each_rank_keeps_its_values_in_a_folder_of_its_own(outcomes):
    done, folder = outcomes
    for world, rank in EVERY_RANK:
        name = f"values-{rank}" if rank else "values"
        expected = [f"{rounding}-{world}/{name}" for rounding in ("soft", "straight")]
        assert done[world, rank]["reconstructed"]["files"]["folders"] == expected
    assert not list(folder.glob("*/values*"))


# Fine-tuning


@pytest.mark.parametrize("world", WORLDS[1:])
def test_gradients_of_the_parts_are_those_of_the_batch(outcomes, world):
    """Three ranks take 2, 3 and 3 of the 8 images, so equal weights would be wrong."""
    done, _ = outcomes
    alone = done[1, 0]["gradients"]
    assert len(alone["gradients"]) == 10
    for rank in range(world):
        mine = done[world, rank]["gradients"]
        assert mine["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            error = (mine["gradients"][name] - gradient).norm() / gradient.norm()
            assert error < 1e-5, name
        for name, loss in alone["losses"].items():
            torch.testing.assert_close(mine["losses"][name], loss, rtol=1e-5, atol=1e-7)


def test_limit_holds_for_the_gradient_of_the_whole_batch(outcomes):
    done, _ = outcomes
    for each in EVERY_RANK:
        for name, value in done[1, 0]["clipped_step"].items():
            torch.testing.assert_close(
                done[each]["clipped_step"][name], value, rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_end_with_one_model_and_one_history(outcomes, world):
    done, folder = outcomes
    first = done[world, 0]["whole_run"]
    for rank in range(world):
        other = done[world, rank]["whole_run"]
        assert equal(other["model"], first["model"])
        assert other["history"] == first["history"] and len(first["history"]) == 3
        assert other["metrics"] == first["metrics"] and "quantized" in first["metrics"]
        assert equal(done[world, rank]["without_folder"], first["model"])
    saved = load_file(folder / f"run-{world}" / "model.safetensors")
    assert equal(saved, first["model"])
    start = done[1, 0]["whole_run"]["history"][0]
    assert_close_records(first["history"][0], start, rel=1e-2)


def test_stopped_run_goes_on_from_what_rank_0_has(outcomes):
    done, _ = outcomes
    expected = done[2, 0]["whole_run"]
    for rank in (0, 1):
        resumed = done[2, rank]["resumed"]
        assert equal(resumed["model"], expected["model"])
        assert resumed["history"] == expected["history"]
    assert "checkpoint.safetensors" in done[2, 0]["resumed"]["files"]
    assert done[2, 1]["resumed"]["files"] == ["bank"]


# Mistakes and failures


@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        ("other seed", "rank 1 was started with another seed than rank 0"),
        ("other teacher", "rank 1 was started with another teacher than rank 0"),
        ("small batch", "finetune.batch_size = 1 is the batch of all 2 processes"),
        ("drifted", 'no longer hold the same weights after step 7 (first: "fc.weight")'),
    ],
)
def test_ranks_that_do_not_fit_together_all_stop(outcomes, mistake, match):
    done, _ = outcomes
    for rank in (0, 1):
        kind, message = done[2, rank]["mistakes"][mistake]
        assert kind == "DistributedError" and match in message


def test_failure_of_one_rank_ends_the_others(outcomes):
    done, _ = outcomes
    assert done[2, 1]["mistakes"]["failed"] == (
        "NonFiniteLossError",
        "the loss of rank 1 is not finite",
    )
    kind, message = done[2, 0]["mistakes"]["failed"]
    assert kind == "LostRankError" and "its own message says why" in message


def test_failed_and_killed_ranks_start_again_and_the_run_ends_as_if_undisturbed(outcomes, tmp_path):
    """Rank 1 stops with an error in the synthesis, then it is killed while fine-tuning."""
    done, _ = outcomes
    settings = {**TINY_OVERRIDES, **OVERRIDES}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=2", "-m", "tests.rank_programs"]
    command += ["quantize", "--model", "tests.tiny:tiny_net", "--recipe", "synq-digits"]
    command += ["--input-shape", ",".join(map(str, SHAPE)), "--output", str(tmp_path)]
    command += [part for item in settings.items() for part in ("--set", "{}={}".format(*item))]
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr
    assert "synq-fast: error on rank 1: the loss of rank 1 is not finite" in ended.stderr
    assert "exitcode: 2" in ended.stderr and "exitcode: -9" in ended.stderr
    assert ended.stdout.count("Models, logs and metrics") == 1
    assert ended.stderr.count("fine-tuning: 6/6") == 1
    saved = load_file(tmp_path / "w4a4" / "model.safetensors")
    assert equal(saved, done[2, 0]["whole_run"]["model"])


# One process


def test_one_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE and ranks.is_first and ranks.size == 1
        assert not torch.distributed.is_initialized()
    assert is_first_process() and not restarted()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE


def test_processes_that_cannot_meet(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    match = "WORLD_SIZE=4 .* RANK, MASTER_ADDR, MASTER_PORT is not set; start .* torchrun"
    with pytest.raises(DistributedError, match=match), joined(torch.device("cpu")):
        pass


@pytest.mark.parametrize(("count", "size"), [(16, 2), (16, 3), (5, 4), (3, 3), (2, 3)])
def test_parts_cover_everything_once(count, size):
    everyone = [Ranks() for _ in range(size)]
    for rank, ranks in enumerate(everyone):
        ranks.rank, ranks.size = rank, size
    items = list(range(count))
    assert sorted(i for ranks in everyone for i in ranks.mine(items)) == items
    slices = [items[ranks.slice_of(count)] for ranks in everyone]
    assert [i for part in slices for i in part] == items
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_each_local_rank_has_its_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen_device(None) == chosen_device("cuda") == torch.device("cuda", 1)
    assert chosen_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SynqFastError, match=r"process 3 on a machine with 2 GPUs.*=2\)"):
        chosen_device(None)
