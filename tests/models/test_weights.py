"""Checkpoints: accepted forms, and what each wrong file says."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synq_fast.errors import CheckpointError, SynqFastError
from synq_fast.models import cifar_resnet, load_weights


@pytest.fixture
def source():
    torch.manual_seed(1)
    return cifar_resnet(8)


@pytest.fixture
def target():
    torch.manual_seed(2)
    return cifar_resnet(8)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def write_safetensors(state, path):
    save_file({k: v.clone() for k, v in state.items()}, path)


FORMS = {
    "plain": lambda s: s,
    "wrapped": lambda s: {"state_dict": s, "epoch": 3},
    "wrapped model": lambda s: {"model": s},
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled data parallel": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "data parallel compiled": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "wrapped data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "no batch counter": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
}


@pytest.mark.parametrize("form", FORMS)
def test_torch_forms_load(source, target, tmp_path, form):
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](source.state_dict()), path)
    load_weights(target, path)
    assert same(source, target)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_load_under_any_name(source, target, tmp_path, name):
    write_safetensors(source.state_dict(), tmp_path / name)
    load_weights(target, str(tmp_path / name))
    assert same(source, target)


def test_legacy_torch_format_loads(source, target, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    load_weights(target, path)
    assert same(source, target)


def refused(target, path, match):
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_weights(target, path)
    assert isinstance(caught.value, SynqFastError)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    return str(caught.value)


def test_another_depth_lists_the_unknown_keys(target, tmp_path):
    path = tmp_path / "deep.safetensors"
    write_safetensors(cifar_resnet(14).state_dict(), path)
    text = refused(target, path, "not a checkpoint of this model \\(CifarResNet\\)")
    assert "36 unknown to the model: " in text
    assert "layer1.1.bn1.bias (16,); " in text
    assert "and 31 more" in text
    assert "choose the model" in text


def test_another_number_of_classes_shows_both_shapes(target, tmp_path):
    path = tmp_path / "classes.safetensors"
    write_safetensors(cifar_resnet(8, num_classes=100).state_dict(), path)
    text = refused(target, path, "2 of another shape")
    assert "linear.weight: model (10, 64), file (100, 64)" in text


def test_missing_keys_are_listed(source, target, tmp_path):
    state = source.state_dict()
    del state["conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    refused(target, tmp_path / "part.pth", r"1 missing from the file: conv1.weight \(16, 3, 3, 3\)")


def test_pickled_module_is_refused(source, target, tmp_path):
    path = tmp_path / "module.pth"
    torch.save(source, path)
    assert "runs code" in refused(target, path, "pickled Python objects").replace("\n", " ")


class Exploit:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_pickle_is_refused_and_not_executed(target, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"conv1.weight": Exploit()}, protocol=2))
    refused(target, path, "refused|not a readable")


@pytest.mark.parametrize("cut", [4, 200, 5000])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_truncated_file(source, target, tmp_path, name, cut):
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(source.state_dict(), path)
    else:
        write_safetensors(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    refused(target, path, "not a readable")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x00" * 64])
def test_other_content(target, tmp_path, content):
    for name in ("other.pth", "other.safetensors"):
        (tmp_path / name).write_bytes(content)
        refused(target, tmp_path / name, "not a readable")


def test_absent_file_and_folder(target, tmp_path):
    refused(target, tmp_path / "absent.pth", "no checkpoint at")
    refused(target, tmp_path, "no checkpoint at")


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {}, {"state_dict": {}}])
def test_not_a_state_dict(target, tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    refused(target, tmp_path / "x.pth", "expected a dictionary of tensors|not a state dict")


def test_values_that_are_not_tensors(target, tmp_path):
    torch.save({"optimizer": [1], "epoch": 2}, tmp_path / "x.pth")
    refused(target, tmp_path / "x.pth", "optimizer, epoch are not tensors")


def test_nan_weights_are_refused(source, target, tmp_path):
    state = source.state_dict()
    state["linear.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    refused(target, tmp_path / "nan.pth", "1 tensors hold NaN or infinity, first linear.bias")
