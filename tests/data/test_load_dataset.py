"""Evaluation sets by name, file and folder, and what each wrong input says."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from synq_fast.data import ArraySet, EvaluationSet, data_root, load_dataset, picture_files
from synq_fast.errors import DataError, SynqFastError
from synq_fast.models import Teacher, load_teacher


def make_teacher(shape=(3, 6, 8), classes=4):
    channels = shape[0]
    return Teacher(nn.Identity(), "t", shape, (0.5,) * channels, (0.25,) * channels, classes)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    return images, np.array([0, 3, 1, 2, 0])


def write(path, images, labels):
    np.savez(path, images=images, labels=labels)
    return path


def test_digits():
    teacher = load_teacher("digits-resnet20")
    digits = load_dataset("digits", teacher)
    assert isinstance(digits, EvaluationSet)
    assert (len(digits), digits.name) == (360, "digits")
    image, label = digits[0]
    assert (image.shape, image.dtype, label.dtype) == ((1, 16, 16), torch.float32, torch.int64)
    pixels = teacher.denormalize(torch.cat([x for x, _ in digits.batches(64)]))
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_npz_is_normalised_per_batch(tmp_path, arrays):
    images, labels = arrays
    data = load_dataset(write(tmp_path / "x.npz", images, labels), make_teacher())
    batches = list(data.batches(2))
    assert [len(y) for _, y in batches] == [2, 2, 1]
    x = torch.cat([x for x, _ in batches])
    expected = (images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-5)
    assert torch.cat([y for _, y in batches]).tolist() == labels.tolist()


def test_layouts_and_types_agree(tmp_path, arrays):
    images, labels = arrays
    forms = [images, images.transpose(0, 3, 1, 2), images / 255, (images / 255).astype(np.float32)]
    sets = [
        load_dataset(write(tmp_path / f"{i}.npz", form, labels), make_teacher())
        for i, form in enumerate(forms)
    ]
    first = torch.stack([sets[0][i][0] for i in range(5)])
    for other in sets[1:]:
        torch.testing.assert_close(torch.stack([other[i][0] for i in range(5)]), first)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "g"])
def test_arrays_of_either_byte_order(tmp_path, arrays, kind):
    images, labels = arrays
    shades = (images / 255).astype(kind)
    for order in "<>":
        path = write(
            tmp_path / "x.npz",
            shades.astype(shades.dtype.newbyteorder(order)),
            labels.astype(f"{order}i8"),
        )
        x, y = next(load_dataset(path, make_teacher()).batches(5))
        expected = (images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
        np.testing.assert_allclose(x.numpy(), expected, atol=3e-3 if kind == "f2" else 1e-5)
        assert y.tolist() == labels.tolist()


def test_grey_images_need_no_channel_axis():
    data = ArraySet("x", np.zeros((2, 6, 8), np.uint8), [0, 1], make_teacher((1, 6, 8)))
    assert data[1][0].shape == (1, 6, 8)


def test_indexing_and_data_loader(arrays):
    data = ArraySet("x", *arrays, make_teacher())
    assert torch.equal(data[-1][0], data[4][0])
    with pytest.raises(IndexError):
        data[5]
    assert len(list(data)) == 5
    x, y = next(iter(DataLoader(data, 5)))
    whole, labels = next(data.batches(5))
    assert torch.equal(x, whole)
    assert torch.equal(y, labels)


NAN = np.full((2, 6, 8, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 6, 8, 3), np.uint8), [0, 4], "labels range from 0 to 4.*classes 0 to 3"),
        (np.zeros((2, 6, 8, 3), np.uint8), [-1, 0], "labels range from -1"),
        (np.zeros((2, 6, 8, 3), np.uint8), [0.0, 1.0], "one integer per image, got float64"),
        (np.zeros((2, 6, 8, 3), np.uint8), [[0], [1]], "one integer per image"),
        (np.zeros((3, 6, 8, 3), np.uint8), [0, 1], "3 images but 2 labels"),
        (np.zeros((0, 6, 8, 3), np.uint8), [], "is empty"),
        (np.zeros((2, 8, 6, 3), np.uint8), [0, 1], r"the shape \(2, 8, 6, 3\)"),
        (np.zeros((2, 6, 8, 3), np.int64), [0, 1], "type int64"),
        (np.zeros((2, 6, 8, 3), np.uint16), [0, 1], "type uint16.*divide them by"),
        (np.zeros((2, 6, 8, 3), ">u2"), [0, 1], "type >u2.*divide them by"),
        (np.zeros((2, 6, 8, 3), bool), [0, 1], "type bool"),
        (np.float32(0.5), [0, 1], "no images but 2 labels"),
        (NAN, [0, 1], "NaN images: 2 of 2"),
        (np.full((2, 6, 8, 3), 255.0), [0, 1], "0..1 scale"),
        (np.full((2, 6, 8, 3), np.inf), [0, 1], "0..1 scale"),
        (np.full((2, 6, 8, 3), -1.0), [0, 1], "not normalised"),
    ],
)
def test_bad_arrays(tmp_path, images, labels, message):
    path = write(tmp_path / "x.npz", images, np.array(labels))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(path, make_teacher())
    assert isinstance(caught.value, SynqFastError)
    assert "x.npz" in str(caught.value)


def test_bad_files(tmp_path):
    teacher = make_teacher()
    np.savez(tmp_path / "keys.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"'images' and 'labels', it has \['x'\]"):
        load_dataset(tmp_path / "keys.npz", teacher)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(tmp_path / "cut.npz", teacher)
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(tmp_path / "empty.npz", teacher)
    (tmp_path / "text.npz").write_bytes(b"hello, this is not an archive")
    with pytest.raises(DataError, match=r"pickle|not a readable"):
        load_dataset(tmp_path / "text.npz", teacher)
    np.savez(tmp_path / "object.npz", images=np.array([{}]), labels=np.array([0]))
    with pytest.raises(DataError, match="without pickle"):
        load_dataset(tmp_path / "object.npz", teacher)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match="holds one array"):
        load_dataset(tmp_path / "one.npz", teacher)
    np.savez_compressed(tmp_path / "flipped.npz", images=np.arange(9999), labels=np.zeros(3))
    content = bytearray((tmp_path / "flipped.npz").read_bytes())
    content[60:400] = b"\xff" * 340
    (tmp_path / "flipped.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable"):
        load_dataset(tmp_path / "flipped.npz", teacher)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="not a dataset"):
        load_dataset(tmp_path / "x.txt", teacher)


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match=r"no dataset 'cifar11'.*imagenet-nips"):
        load_dataset("cifar11", make_teacher())


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNQ_FAST_DATA", str(tmp_path))
    assert data_root() == tmp_path
    with pytest.raises(DataError, match=r"cifar10_test_1017.npz is not in .*SYNQ_FAST_DATA"):
        load_dataset("cifar10", make_teacher())
    monkeypatch.setenv("SYNQ_FAST_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"SYNQ_FAST_DATA is .*not a folder"):
        data_root()


def test_data_root_without_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("SYNQ_FAST_DATA", raising=False)
    monkeypatch.setattr("synq_fast.data.loading.__file__", str(tmp_path / "a/b/c/loading.py"))
    with pytest.raises(DataError, match="set SYNQ_FAST_DATA"):
        data_root()
    (tmp_path / "shared/data").mkdir(parents=True)
    assert data_root() == tmp_path / "shared/data"


def save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_folder_with_table(tmp_path, arrays):
    images, labels = arrays
    rows = ["file,label"]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_image(tmp_path / "f" / f"{i}.png", image)
        rows.append(f"{i}.png,{label}")
    (tmp_path / "f" / "labels.csv").write_text("\n".join(rows) + "\n")
    data = load_dataset(tmp_path / "f", make_teacher())
    x, y = next(data.batches(5))
    expected = next(ArraySet("x", images, labels, make_teacher()).batches(5))
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])
    (tmp_path / "f" / "0.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0\.png is not a readable image"):
        data[0]
    (tmp_path / "f" / "0.png").unlink()
    with pytest.raises(DataError, match=r"1 files that are not there, first 0\.png"):
        load_dataset(tmp_path / "f", make_teacher())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\n", "columns 'file' and 'label'"),
        ("", "columns 'file' and 'label'"),
        ("file,label\nx.png,cat\n", "line 2: the label 'cat'"),
        ("file,label\nx.png\n", "line 2: the label None"),
        ("label,file\n3\n", "line 2: the file is missing"),
        ('file,label\n"x.png,3\n' + "y" * 200_000, "labels.csv cannot be read: field larger"),
        ("file,label\n", "is empty"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path, make_teacher())


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"]
)
def test_tables_in_other_encodings(tmp_path, encoding):
    save_image(tmp_path / "schön.png", np.zeros((6, 8, 3), np.uint8))
    table = tmp_path / "labels.csv"
    table.write_bytes("file,label\r\nschön.png,3\r\n".encode(encoding))
    wrong = {"cp1252": r"not UTF-8 text \(byte 0xf6 in line 2\)", "utf-16-le": "zero bytes"}
    wrong["utf-16-be"] = "zero bytes"
    if encoding in wrong:
        with pytest.raises(DataError, match=rf"labels\.csv .*{wrong[encoding]}.*save it as UTF-8"):
            load_dataset(tmp_path, make_teacher())
    else:
        assert load_dataset(tmp_path, make_teacher()).labels.tolist() == [3]


def test_folder_with_class_folders(tmp_path):
    for i, name in enumerate("dcba"):
        save_image(tmp_path / name / "x.png", np.full((6, 8, 3), 10 * i, np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = load_dataset(tmp_path, make_teacher())
    assert data.labels.tolist() == [0, 1, 2, 3]
    assert data.pixels([0])[0, 0, 0, 0].item() == pytest.approx(30 / 255)
    save_image(tmp_path / "e" / "x.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match="5 class folders, but the model has 4"):
        load_dataset(tmp_path, make_teacher())


def test_numbered_folders_are_class_indices(tmp_path):
    for name in ("3", "1"):
        save_image(tmp_path / name / "x.png", np.zeros((6, 8, 3), np.uint8))
    assert load_dataset(tmp_path, make_teacher()).labels.tolist() == [1, 3]


def test_folder_without_anything(tmp_path):
    with pytest.raises(DataError, match=r"neither labels\.csv nor subfolders"):
        load_dataset(tmp_path, make_teacher())


def test_other_sizes_are_resized_and_cropped(tmp_path):
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (64, 1, 3))
    save_image(tmp_path / "0" / "wide.png", ramp)
    save_image(tmp_path / "1" / "grey.png", ramp[:, :, 0])
    data = load_dataset(tmp_path, make_teacher((3, 28, 28)))
    image = data.pixels([0])[0]
    assert image.shape == (3, 28, 28)
    # The crop is centred: its mean is that of the whole ramp.
    assert image.mean().item() == pytest.approx(127 / 255, abs=0.01)
    assert torch.equal(data.pixels([1])[0], image)
    grey = load_dataset(tmp_path, make_teacher((1, 28, 28)))
    assert torch.equal(grey.pixels([0])[0], image[:1])


def test_image_files_do_not_fit_other_channels(tmp_path):
    save_image(tmp_path / "0" / "x.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match="1 or 3 channels, the model takes 2"):
        load_dataset(tmp_path, make_teacher((2, 6, 8)))


def test_pictures_in_any_arrangement(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        picture_files(tmp_path, make_teacher())
    for place, value in (("one.png", 255), ("a/b/two.png", 0), (".hidden.png", 9)):
        Image.new("RGB", (8, 6), (value,) * 3).save(tmp_path / place)
    (tmp_path / "notes.txt").write_text("no image")
    found = picture_files(tmp_path, make_teacher())
    assert len(found) == 2 and found.pixels([0, 1]).amax((1, 2, 3)).tolist() == [0.0, 1.0]
