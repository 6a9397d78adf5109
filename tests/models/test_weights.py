"""Checkpoints: accepted forms, and what each wrong file says."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synq_fast.errors import CheckpointError, SynqFastError, SynqFastWarning
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


def prefixed(prefix, state):
    return {f"{prefix}{k}": v for k, v in state.items()}


ZERO = {"loss.weight": torch.zeros(3)}
AVERAGED = {
    "averaged model": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
    "wrapped averaged": lambda s: {
        "state_dict": {"n_averaged": torch.tensor(3), **prefixed("module.", s)}
    },
    "averaged compiled": lambda s: {
        "n_averaged": torch.tensor(3), **prefixed("module._orig_mod.", s)
    },
    "net": lambda s: {"net": s, "acc": 91.2, "epoch": 3},
    "net data parallel": lambda s: {"net": prefixed("module.", s)},
    "lightning": lambda s: {
        "state_dict": prefixed("model.", s), "hyper_parameters": {"lr": 0.1}, "epoch": 1,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2)}}}],
    },
    "lightning net": lambda s: {"state_dict": prefixed("net.", s)},
    "any one prefix": lambda s: prefixed("my_network.", s),
    "nested prefixes": lambda s: prefixed("module.model.encoder.", s),
    "nested wrappers": lambda s: {"model": {"state_dict": s}},
    "ema alone": lambda s: {"ema": s, "step": 3},
    "timm ema alone": lambda s: {"state_dict_ema": prefixed("module.", s)},
    "ema of an averaged model": lambda s: {
        "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", s)}
    },
    "part compiled": lambda s: {
        k.replace("layer1.0.", "layer1._orig_mod.0."): v for k, v in s.items()
    },
    "optimizer beside": lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", AVERAGED)
def test_forms_of_other_trainers_load_without_a_word(source, target, tmp_path, form):
    torch.save(AVERAGED[form](source.state_dict()), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def other():
    return {k: v + 1 for k, v in cifar_resnet(8).state_dict().items()}


BESIDE = {
    "timm": (lambda s: {"state_dict": s, "state_dict_ema": other()}, "state_dict is read"),
    "ema first": (lambda s: {"ema": other(), "model": s}, "model is read"),
    "model and ema": (lambda s: {"model": s, "model_ema": prefixed("module.", other())}, "model_"),
    "a loss": (
        lambda s: {"state_dict": {**prefixed("model.", s), **ZERO}}, r"left out \(loss\.weight\)"
    ),
    "ema prefix": (
        lambda s: {
            "state_dict": {**prefixed("model_ema.module.", other()), **prefixed("model.", s)}
        },
        'named "model...."',
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BESIDE)
def test_the_trained_weights_are_taken_and_it_is_said(source, target, tmp_path, form):
    make, match = BESIDE[form]
    torch.save(make(source.state_dict()), tmp_path / "w.pth")
    with pytest.warns(SynqFastWarning, match=match):
        load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_two_equal_copies_are_asked_about(source, target, tmp_path):
    both = {**prefixed("student.", source.state_dict()), **prefixed("teacher.", other())}
    torch.save({"state_dict": both}, tmp_path / "w.pth")
    refused(target, tmp_path / "w.pth", r"several prefixes \(student\., teacher\.\); save the")


def test_a_part_of_a_larger_network_is_no_checkpoint(tmp_path):
    torch.save(cifar_resnet(8, num_classes=10).state_dict(), tmp_path / "w.pth")
    refused(nn.Linear(64, 10), tmp_path / "w.pth", "missing from the file: weight")


def test_an_error_shows_the_names_behind_the_prefix(target, tmp_path):
    state = prefixed("model.", cifar_resnet(14).state_dict())
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    text = refused(target, tmp_path / "w.pth", "not a checkpoint of this model")
    assert "layer1.1.bn1.bias (16,); " in text and "missing from the file" not in text


def test_a_model_that_has_such_names_itself(tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.model = nn.Linear(2, 2), nn.Linear(2, 2)
            self.register_buffer("n_averaged", torch.tensor(3))

    torch.manual_seed(0)
    first, second = Wrapper(), Wrapper()
    torch.save(prefixed("module.", first.state_dict()), tmp_path / "w.pth")
    load_weights(second, tmp_path / "w.pth")
    assert same(first, second)
