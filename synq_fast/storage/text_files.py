"""Text that users write, in whichever encoding their editor chose to announce."""

from __future__ import annotations

import codecs
from pathlib import Path

# UTF-32 comes first: the mark of UTF-16 is the beginning of its own.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-8, UTF-16 or UTF-32 with a byte-order mark.

    Any other encoding would be a guess.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is in another encoding, or no text; says where, and the way out.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        raise ValueError(
            f"it holds zero bytes, as UTF-16 text without a byte-order mark does; {_WAY_OUT}"
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"it is not {encoding.removesuffix('-sig').upper()} text (byte "
            f"0x{content[error.start]:02x} in line {line}); {_WAY_OUT}"
        ) from error


_WAY_OUT = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
