"""The script that made the embedded teacher."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("sklearn", reason="scikit-learn brings the digits")

from synq_fast.data.digits import DIGITS_FILE
from synq_fast.models.registry import DIGITS_MEAN, DIGITS_STD
from tools import train_digits


@pytest.fixture(scope="module")
def parts():
    return train_digits.load_split()


def test_embedded_images_are_the_test_part(parts):
    _, (images, labels) = parts
    with np.load(DIGITS_FILE) as arrays:
        np.testing.assert_array_equal(arrays["images"], images)
        np.testing.assert_array_equal(arrays["labels"], labels)


def test_parts_share_no_image(parts):
    (training, _), (test, labels) = parts
    assert (len(training), len(test)) == (1437, 360)
    seen = {image.tobytes() for image in training}
    assert not any(image.tobytes() in seen for image in test)
    assert np.bincount(labels).min() >= 35


def test_normalisation_is_that_of_the_training_part(parts):
    images = train_digits.prepare(parts[0][0])
    assert images.mean().item() == pytest.approx(DIGITS_MEAN[0], abs=1e-3)
    assert images.std().item() == pytest.approx(DIGITS_STD[0], abs=1e-3)


def test_augmentation_without_amount_changes_nothing(parts, monkeypatch):
    for amount in ("ROTATION_DEGREES", "SHIFT_PIXELS", "SCALE"):
        monkeypatch.setattr(train_digits, amount, 0.0)
    images = train_digits.prepare(parts[0][0][:8])
    same = train_digits.augment(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_two_runs_write_the_same_bytes(parts, tmp_path, monkeypatch):
    training, test = parts
    small = (training[0][:128], training[1][:128])
    monkeypatch.setattr(train_digits, "load_split", lambda: (small, test))
    # One thread: two would wait for each other on a busy machine.
    monkeypatch.setattr(train_digits, "THREADS", 1)
    threads = torch.get_num_threads()
    try:
        for run in "ab":
            train_digits.main(
                [
                    "--epochs=2",
                    f"--weights={tmp_path / run}.safetensors",
                    f"--images={tmp_path / run}.npz",
                ]
            )
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    # Versions of Python write other zip headers around the same arrays.
    with np.load(tmp_path / "a.npz") as made, np.load(DIGITS_FILE) as packed:
        assert sorted(made.files) == sorted(packed.files)
        for name in packed.files:
            assert made[name].dtype == packed[name].dtype
            np.testing.assert_array_equal(made[name], packed[name])
    weights = load_file(tmp_path / "a.safetensors")
    assert weights.keys() == train_digits.digits_resnet20().state_dict().keys()
