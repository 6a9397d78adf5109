"""Picture files of every kind: the pixels that they mean, or an error that says what is unclear."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from synq_fast.data import FolderSet, load_dataset
from synq_fast.errors import DataError
from synq_fast.models import Teacher

HEIGHT, WIDTH = 4, 256
RAMP = np.tile(np.arange(256, dtype=np.uint8), (HEIGHT, 1))
DEEP = RAMP.astype(np.uint16) * 257  # the same shades in 16 bits
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], axis=2)


def pixels(path, channels=1, size=(HEIGHT, WIDTH)):
    """The one picture of a file, on a scale of 0 to 255."""
    shape = (channels, *size)
    teacher = Teacher(nn.Identity(), "t", shape, (0.0,) * channels, (1.0,) * channels, 1)
    return FolderSet("set", [path], [0], teacher).pixels([0])[0] * 255


def assert_ramp(path, tolerance=0.51):
    for channels in (1, 3):
        shown = pixels(path, channels)
        assert (shown - torch.from_numpy(RAMP).float()).abs().max() <= tolerance
        assert shown.mean().item() / 255 == pytest.approx(0.5, abs=0.003)


def png(path, color_type, rows):
    """A PNG of 16 bits a channel, which Pillow itself does not write."""
    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d))
            for k, d in chunks
        )
    )


def tiff(path, values, bits, sample_format=1, order="<", photometric=1):
    """An uncompressed TIFF of one channel, byte for byte."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits, 0),
        (259, 3, 1, 0),  # not compressed
        (262, 3, photometric, 0),
        (273, 4, 8),  # where the one strip begins
        (277, 3, 1, 0),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, sample_format, 0),
    ]
    entries = b"".join(
        struct.pack(f"{order}HHI{'HH' if kind == 3 else 'I'}", tag, kind, 1, *values)
        for tag, kind, *values in tags
    )
    start = b"II" if order == "<" else b"MM"
    head = start + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(
        head + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    )


def pages(path):
    page = Image.fromarray(RAMP)
    page.save(path, save_all=True, append_images=[page])


def test_grey_png_of_16_bits(tmp_path):
    png(tmp_path / "x.png", 0, DEEP)
    assert_ramp(tmp_path / "x.png")


@pytest.mark.parametrize("shift", [0, 100, 156])
def test_16_bits_are_rounded_to_the_nearest_shade(tmp_path, shift):
    Image.fromarray(np.minimum(DEEP.astype(np.int64) + shift, 65535).astype(np.uint16)).save(
        tmp_path / "x.png"
    )
    expected = np.rint(np.minimum(DEEP.astype(np.float64) + shift, 65535) / 257)
    assert np.array_equal(pixels(tmp_path / "x.png")[0].numpy().round(3), expected)


def test_colour_png_of_16_bits(tmp_path):
    png(tmp_path / "x.png", 2, COLOURS.astype(np.uint16) * 257)
    difference = pixels(tmp_path / "x.png", 3) - torch.from_numpy(COLOURS.transpose(2, 0, 1).copy())
    assert difference.abs().max() <= 0.51


@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_tiff_of_16_bits(tmp_path, order):
    tiff(tmp_path / "x.tif", DEEP, 16, order=order)
    assert_ramp(tmp_path / "x.tif")


def test_grey_tiff_of_12_bits(tmp_path):
    values = np.rint(RAMP / 255 * 4095).astype(np.uint16)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2)
    path = tmp_path / "x.tif"
    tiff(path, packed.astype(np.uint8).reshape(HEIGHT, -1), 12)
    # The width counts pixels, not bytes.
    path.write_bytes(
        path.read_bytes().replace(
            struct.pack("<HHII", 256, 4, 1, WIDTH * 3 // 2), struct.pack("<HHII", 256, 4, 1, WIDTH)
        )
    )
    assert_ramp(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_float_tiff_on_a_unit_scale(tmp_path, order):
    tiff(tmp_path / "x.tif", (RAMP / 255).astype(np.float32), 32, 3, order)
    assert_ramp(tmp_path / "x.tif")


def test_grey_map_of_16_bits(tmp_path):
    for largest in (65535, 1023):
        shades = np.rint(RAMP / 255 * largest).astype(">u2")
        (tmp_path / "x.pgm").write_bytes(b"P5 256 4 %d\n" % largest + shades.tobytes())
        assert_ramp(tmp_path / "x.pgm")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda p: tiff(p, DEEP.astype(np.uint32), 32), "what stands for white is unknown"),
        (lambda p: tiff(p, DEEP.astype(np.int32), 32, 2), "what stands for white is unknown"),
        (lambda p: tiff(p, (DEEP // 2).astype(np.int16), 16, 2), "signed"),
        (lambda p: tiff(p, DEEP.astype(np.float32), 32, 3), "from 0 to 6.554e.04, expected a 0..1"),
        (lambda p: tiff(p, np.full((4, 256), np.nan, np.float32), 32, 3), "from nan to nan"),
        (lambda p: tiff(p, np.full((4, 256), -0.1, np.float32), 32, 3), "expected a 0..1 scale"),
        (lambda p: tiff(p, DEEP, 16, photometric=0), "zero stands for white"),
        (lambda p: pages(p), "2 frames"),
    ],
    ids=["uint32", "int32", "int16", "float", "nan", "negative", "white is zero", "pages"],
)  # fmt: skip
def test_unclear_tiff_is_refused(tmp_path, write, reason):
    path = tmp_path / "picture.tif"
    write(path)
    with pytest.raises(DataError, match=rf"picture\.tif is not one clear picture: .*{reason}"):
        pixels(path)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animation_is_refused(tmp_path, suffix):
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 90, 200)]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="it holds 3 frames; save the one that is meant"):
        pixels(tmp_path / f"x.{suffix}", 3, (8, 8))


def test_photograph_with_a_preview_is_the_photograph(tmp_path):
    photograph, preview = (Image.new("RGB", (8, 8), (shade,) * 3) for shade in (200, 10))
    photograph.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview])
    assert pixels(tmp_path / "x.jpg", 3, (8, 8)).mean().item() == pytest.approx(200, abs=1)


def test_few_bits_palette_and_cmyk(tmp_path):
    black_and_white = Image.fromarray(RAMP > 127)
    black_and_white.save(tmp_path / "1.png")
    assert torch.equal(pixels(tmp_path / "1.png")[0] > 127, torch.from_numpy(RAMP > 127))
    assert pixels(tmp_path / "1.png").mean().item() == pytest.approx(127.5)
    palette = Image.fromarray(255 - RAMP).convert("P")
    palette.putpalette(np.repeat(np.arange(255, -1, -1, dtype=np.uint8), 3).tobytes())
    palette.save(tmp_path / "p.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pixels(tmp_path / "p.png", 3).numpy().round(3), expected)
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red = pixels(tmp_path / "c.jpg", 3).mean((1, 2))
    assert red.tolist() == pytest.approx([255, 0, 0], abs=4)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_alpha_is_dropped_where_it_hides_nothing(tmp_path, mode):
    path = tmp_path / "x.png"
    options = {"transparency": 255} if mode == "P" else {}
    shades = np.minimum(RAMP, 254)
    Image.fromarray(shades).convert(mode).save(path, **options)
    assert np.array_equal(pixels(path)[0].numpy().round(3), shades)
    options = {"transparency": 7} if mode == "P" else {}
    picture = Image.fromarray(RAMP).convert(mode)
    if mode != "P":
        picture.putalpha(Image.fromarray(RAMP))
    picture.save(path, **options)
    with pytest.raises(DataError, match=r"transparent pixels.*flatten it"):
        pixels(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_upright(tmp_path, orientation, suffix):
    upright = Image.new("L", (24, 16), 0)
    upright.paste(255, (0, 0, 8, 8))  # light in the upper left corner
    undo = {
        1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }[orientation]  # fmt: skip
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    stored.convert("RGB").save(path, exif=exif)
    shown = pixels(path, size=(16, 24))[0]
    assert shown[2:6, 2:6].min() > 200 and shown[10:].max() < 60 and shown[:, 10:].max() < 60


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing(tmp_path):
    Image.fromarray(RAMP).save(
        tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95
    )
    assert_ramp(tmp_path / "x.jpg", tolerance=4)


def test_hidden_files_and_folders_are_no_images(tmp_path):
    teacher = Teacher(nn.Identity(), "t", (1, 4, 256), (0.0,), (1.0,), 2)
    names = ["a/x.png", "b/deep/x.png"]
    hidden = [
        "a/._x.png",
        "a/.ipynb_checkpoints/x-checkpoint.png",
        "b/deep/.hidden/er/x.png",
        "b/__MACOSX/x.png",
        ".ipynb_checkpoints/x.png",
        "__MACOSX/a/._x.png",
    ]
    for name in names + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RAMP).save(tmp_path / name)
    (tmp_path / "a" / "folder.png").mkdir()
    assert load_dataset(tmp_path, teacher).labels.tolist() == [0, 1]


def test_a_hidden_folder_may_be_asked_for(tmp_path):
    teacher = Teacher(nn.Identity(), "t", (1, 4, 256), (0.0,), (1.0,), 1)
    (tmp_path / ".cache" / "a").mkdir(parents=True)
    Image.fromarray(RAMP).save(tmp_path / ".cache" / "a" / "x.png")
    assert len(load_dataset(tmp_path / ".cache", teacher)) == 1
