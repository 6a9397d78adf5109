"""How much memory is free, from the files that Linux keeps about it."""

import sys

import pytest
import torch

from synq_fast.runtime import memory
from synq_fast.runtime.memory import free_memory, machine_memory, send

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """A machine with 8 GiB available whose files a test can write."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    write(tmp_path / "proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable: 8388608 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder, limit, used, cache=0, version=2):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    write(folder / names[0], f"{limit}\n")
    write(folder / names[1], f"{used}\n")
    write(folder / "memory.stat", f"anon 5\n{names[2]} {cache}\n")


def free(machine):
    return machine_memory(machine / "proc", machine / "groups")


def test_without_limits_it_is_what_the_machine_has(machine):
    assert free(machine) == 8 * GIB
    group(machine / "groups", "max", GIB)
    assert free(machine) == 8 * GIB


def test_limit_of_a_container(machine):
    group(machine / "groups", 4 * GIB, 3 * GIB, cache=GIB)
    assert free(machine) == 2 * GIB
    group(machine / "groups", 64 * GIB, GIB)
    assert free(machine) == 8 * GIB
    group(machine / "groups", GIB, 2 * GIB)
    assert free(machine) == 0


def test_tightest_of_nested_groups(machine):
    write(machine / "proc/self/cgroup", "0::/slurm/job_7/step_0\n")
    group(machine / "groups/slurm/job_7", 3 * GIB, 0)
    group(machine / "groups/slurm/job_7/step_0", "max", 0)
    group(machine / "groups/slurm/job_8", GIB, 0)
    group(machine, 1, 0)  # above the root: no group
    assert free(machine) == 3 * GIB


def test_first_version_of_groups(machine):
    write(machine / "proc/self/cgroup", "9:name=systemd:/\n4:memory:/box\n0::/\n")
    group(machine / "groups/memory", 2**63 - 4096, 0, version=1)
    group(machine / "groups/memory/box", 5 * GIB, GIB, version=1)
    assert free(machine) == 4 * GIB


def test_system_without_these_files(machine):
    assert GIB / 4 < machine_memory(machine / "absent", machine / "absent") <= sys.maxsize


def test_this_machine():
    assert 0 < machine_memory() <= sys.maxsize


def test_processes_of_one_machine_share_it(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * GIB)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_memory(torch.device("cpu")) == 8 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == 2 * GIB


def test_send_to_the_same_device_is_the_tensor_itself():
    x = torch.zeros(3)
    assert send(x, torch.device("cpu")) is x


@pytest.mark.cuda
def test_send_and_free_memory_on_a_gpu():
    device = torch.device("cuda", 0)
    before = free_memory(device)
    x = send(torch.arange(2.0**24), device)
    assert torch.equal(x.cpu(), torch.arange(2.0**24))
    assert before - free_memory(device) >= 0.9 * 2**26
    del x
    assert free_memory(device) >= 0.99 * before
