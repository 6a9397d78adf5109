import pytest
import torch

import synq_fast
from synq_fast.deployment.freezing import freeze, is_frozen
from synq_fast.deployment.packed_state import fill_packed, packed_state
from synq_fast.errors import CheckpointError, ModelError, RecipeError
from tests.tiny import TINY_OVERRIDES, tiny_images, tiny_net

CALIBRATED = {**TINY_OVERRIDES, "stages": ["synthesis", "calibration"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    overrides = {**CALIBRATED, "quantization.placement": "integer"}
    synq_fast.quantize(
        tiny_net(), "synq", "w3a3", (2, 8, 8), output=folder, overrides=overrides, progress=False
    )
    return folder


@pytest.mark.parametrize("overrides", [{}, {"quantization.placement": "after_relu"}])
def test_a_packed_file_loads_bit_for_bit(finished, tmp_path, overrides):
    folder = finished
    if overrides:
        folder = tmp_path / "run"
        synq_fast.quantize(
            tiny_net(), "synq", "w3a3", (2, 8, 8), output=folder, progress=False,
            overrides={**CALIBRATED, **overrides},
        )  # fmt: skip
    path, images = tmp_path / "net.safetensors", tiny_images(9)
    report = synq_fast.export(folder, path, "packed", architecture=tiny_net())
    assert report.bytes == path.stat().st_size
    expected = freeze(synq_fast.load(folder, tiny_net()))
    loaded = synq_fast.load(path, tiny_net(seed=4))
    assert is_frozen(loaded) and torch.equal(loaded(images), expected(images))
    state = loaded.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name
    assert torch.equal(synq_fast.load(path, tiny_net(), execution="frozen")(images), loaded(images))
    assert synq_fast.evaluate(loaded, [(images, torch.zeros(9, dtype=torch.int64))]).count == 9
    with pytest.raises(ModelError, match="is a packed file, an export itself"):
        synq_fast.export(path, tmp_path / "net.onnx", architecture=tiny_net())


def test_damage_is_found(finished, tmp_path):
    path = tmp_path / "net.safetensors"
    synq_fast.export(finished, path, "packed", architecture=tiny_net())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        synq_fast.load(path, tiny_net())


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda packed: packed[:, :-1], r"torch\.uint8 of shape"),
        (lambda packed: packed.short(), r"torch\.int16 of shape"),
        (None, "none"),
    ],
)
def test_codes_that_do_not_fit_are_refused(finished, change, given):
    frozen = freeze(synq_fast.load(finished, tiny_net()))
    state = packed_state(frozen)
    name = next(name for name in state if name.endswith(".packed"))
    packed = state.pop(name)
    if change is not None:
        state[name] = change(packed)
    with pytest.raises(CheckpointError, match=rf"3-bit codes in torch\.uint8 .* the file {given}"):
        fill_packed("net.safetensors", frozen, state)


def test_a_packed_file_has_its_own_ending(finished, tmp_path):
    with pytest.raises(RecipeError, match=r"format packed is called NAME\.safetensors"):
        synq_fast.export(finished, tmp_path / "net.onnx", "packed", architecture=tiny_net())
