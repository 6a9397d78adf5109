"""What the process has set for new tensors changes nothing that is computed here."""

import pytest
import torch
from torch.utils.data import TensorDataset

import synq_fast
from synq_fast.runtime.defaults import plain_defaults
from tests.process_defaults import default_device, default_dtype
from tests.tiny import equal_states, labelled, run, tiny_net

SHORT = {
    "finetune.steps": 2,
    "synthesis.steps": 2,
    "finetune.bank": "stream",
    "quantization.learn_ranges": True,
}


SETTINGS = {
    "float64": default_dtype,
    "device": default_device,
    "context": lambda: torch.device("meta"),
}


def everything(net, data, folder):
    """A run, its model read back, and accuracies; network and data exist already."""
    result = run(net, overrides=SHORT, evaluation=data, output=folder)
    loaded = synq_fast.load(folder, net)
    dataset = TensorDataset(*data[0])
    teacher = synq_fast.load_teacher("digits-resnet20")
    return (
        result.model,
        result.history,
        loaded,
        synq_fast.evaluate(loaded, dataset),
        synq_fast.evaluate(teacher, "digits"),
        teacher.normalize(torch.full((1, 1, 2, 2), 0.5, dtype=torch.float32, device="cpu")),
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return everything(tiny_net(), labelled(), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_is_the_same_bit_for_bit(setting, expected, tmp_path):
    net, data = tiny_net(), labelled()
    with SETTINGS[setting]():
        found = everything(net, data, tmp_path)
        squeezed = synq_fast.load_teacher(
            "squeezenet1_1", weights="random", input_shape=(3, 32, 32)
        )
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(ours, torch.nn.Module):
            assert equal_states(ours, theirs)
        elif isinstance(ours, torch.Tensor):
            assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
        else:
            assert ours == theirs
    assert {p.dtype for p in squeezed.module.parameters()} == {torch.float32}


def test_plain_defaults_end_with_their_block():
    with default_dtype(), torch.device("meta"):
        with pytest.raises(KeyError), plain_defaults():
            assert torch.zeros(1).dtype == torch.float32 and torch.zeros(1).device.type == "cpu"
            raise KeyError
        assert torch.zeros(1).dtype == torch.float64 and torch.zeros(1).is_meta
    assert torch.zeros(1).dtype == torch.float32
