"""What a picture file shows, upright and with 8 bits a channel, or why that cannot be known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
# EXIF orientation to the name of the transposition that puts the picture upright.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
# A photograph with previews in the same file; its first frame is the photograph.
_FIRST_FRAME_COUNTS = frozenset({"MPO"})


class UnclearPictureError(ValueError):
    """A picture that can be read in more than one way; says which, and the way out."""


def picture_of(file: Image.Image, mode: str) -> Image.Image:
    """The picture of an open file, turned upright as its EXIF orientation says.

    Grey of 16 bits is scaled to 8, floating point is taken to be on a 0..1 scale. Palettes, CMYK
    and 1-bit pictures are converted as Pillow does, an alpha channel that hides nothing is dropped.

    Args:
        file: what `PIL.Image.open` returned.
        mode: "L" or "RGB".

    Raises:
        UnclearPictureError: several frames, transparent pixels, or values of unknown scale.
        Exception: of many kinds, where the file is damaged.
    """
    from PIL import Image

    if file.format not in _FIRST_FRAME_COUNTS and getattr(file, "n_frames", 1) > 1:
        raise UnclearPictureError(
            f"it holds {getattr(file, 'n_frames', 1)} frames; save the one that is meant alone"
        )
    file.load()
    picture = _scaled(file) if _is_deep(file) else _opaque(file)
    turn = _UPRIGHT.get(_orientation(file))
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
    return picture.convert(mode)


def _is_deep(file: Image.Image) -> bool:
    return file.mode in ("I", "F") or file.mode.startswith("I;")


def _scaled(file: Image.Image) -> Image.Image:
    """A picture of one channel with more than 8 bits as 8-bit grey."""
    from PIL import Image

    if "transparency" in file.info:
        raise UnclearPictureError(f"its transparency is unclear; {_FLATTEN}")
    tags: Mapping[int, Any] = getattr(file, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == 0:
        raise UnclearPictureError(f"its zero stands for white; {_CONVERT}")
    values = np.asarray(file)
    if file.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise UnclearPictureError(
                f"its floating-point values go from {low:.4g} to {high:.4g}, expected a 0..1 "
                f"scale; {_CONVERT}"
            )
        highest = 1
    else:
        highest = _largest_value(file, tags)
    return Image.fromarray(np.rint(values * (255 / highest)).astype(np.uint8))


def _largest_value(file: Image.Image, tags: Mapping[int, Any]) -> int:
    """What stands for white in a picture of integers."""
    if file.mode.startswith("I;16"):
        bits = int(np.ravel(tags.get(_BITS_PER_SAMPLE, 16))[0])
        return (1 << bits) - 1
    # Pillow before 11 opens 16-bit PNG in mode "I", and any release a PGM, scaled to 16 bits.
    if file.format in ("PNG", "PPM"):
        return 65535
    raise UnclearPictureError(
        f"its values are signed or have 32 bits, so what stands for white is unknown; {_CONVERT}"
    )


def _opaque(file: Image.Image) -> Image.Image:
    """A picture of 8-bit channels without alpha."""
    if file.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in file.info:
        return file
    picture = file.convert("RGBA")
    if picture.getchannel("A").getextrema()[0] != 255:
        raise UnclearPictureError(
            f"it has transparent pixels, whose colour depends on the background; {_FLATTEN}"
        )
    return picture


def _orientation(file: Image.Image) -> int:
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1


_CONVERT = "convert it to 8-bit grey, or store the images as arrays in an .npz file"
_FLATTEN = "flatten it onto the background that the model was trained with"
