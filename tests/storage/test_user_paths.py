"""``~`` in every path that a user can give."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import synq_fast
from synq_fast import cli
from synq_fast.data import data_root, load_dataset
from synq_fast.models import load_teacher
from synq_fast.storage.paths import user_path
from tests.tiny import equal_states, run, tiny_net


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    assert not Path("~").exists()


def test_user_path(home):
    assert user_path("~/a/b") == home / "a/b"
    assert user_path(Path("~")) == home
    assert user_path("a/~/b") == Path("a/~/b")
    assert user_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert user_path("/x") == Path("/x")


def test_paths_of_the_python_interface(home, monkeypatch):
    result = run(output="~/run", bank=Path("~/bank"))
    assert (home / "run" / "model.safetensors").exists() and any((home / "bank").iterdir())
    result.save("~/saved.safetensors")
    for path in ("~/saved.safetensors", "~/run"):
        assert equal_states(synq_fast.load(path, model=tiny_net()), result.model)
    net = tiny_net()
    save_file(tiny_net(5).state_dict(), home / "weights.safetensors")
    teacher = load_teacher(net, weights="~/weights.safetensors", input_shape=(2, 8, 8))
    assert equal_states(teacher.module, tiny_net(5))
    images = np.zeros((2, 8, 8, 2), np.uint8)
    np.savez(home / "set.npz", images=images, labels=[0, 1])
    np.savez(home / "cifar10_test_1017.npz", images=images, labels=[0, 1])
    monkeypatch.setenv("SYNQ_FAST_DATA", "~")
    assert data_root() == home
    assert len(load_dataset("~/set.npz", teacher)) == len(load_dataset("cifar10", teacher)) == 2


def test_synthesize_below_the_home_folder(home):
    bank = synq_fast.synthesize(
        tiny_net(),
        "~/bank",
        input_shape=(2, 8, 8),
        overrides={"synthesis": {"images": 4, "batch_size": 4, "steps": 1}},
        progress=False,
    )
    assert len(bank) == 4 and (home / "bank" / "bank.json").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["quantize"], "output"),
        (["quantize"], "bank"),
        (["synthesize"], "output"),
        (["evaluate"], "saved"),
        (["bench", "ops"], "json"),
        (["bench", "ops"], "plot"),
        (["bench", "step"], "json"),
    ],
)
def test_paths_of_the_command_line(home, command, option):
    given = ["~/x"] if option == "saved" else [f"--{option}=~/x"]
    assert getattr(cli._parser().parse_args([*command, *given]), option) == home / "x"


def test_checkpoint_and_images_of_the_command_line(home, capsys):
    teacher = load_teacher("digits-resnet20")
    save_file(teacher.module.state_dict(), home / "w.safetensors")
    images = np.random.default_rng(0).random((3, 16, 16)).astype(np.float32)
    np.savez(home / "set.npz", images=images, labels=[0, 1, 2])
    assert cli.main(["evaluate", "--weights", "~/w.safetensors", "--data=~/set.npz"]) == 0
    assert "3 images" in capsys.readouterr().out
