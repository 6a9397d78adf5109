"""Image files in folders, decoded when they are needed."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synq_fast.data.decoding import ImageFiles, decoded_batches, default_workers
from synq_fast.data.evaluation_set import EvaluationSet
from synq_fast.errors import DataError
from synq_fast.models.teacher import Teacher
from synq_fast.storage.text_files import read_text

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
# What macOS adds to archives: a folder with a hidden file beside every file.
_DEBRIS = "__MACOSX"


class FolderSet(EvaluationSet):
    """Image files with their labels.

    Pictures are turned upright as their EXIF orientation says; 16-bit grey is scaled to 8 bits and
    floating point taken to be on a 0..1 scale.

    An image that already has the teacher's height and width is used as it is; any other is resized
    (bilinear, antialiased) until its shorter side is 256/224 of the input's longer side, and its
    centre is cut out: 256 and 224 for a 224x224 model.

    Args:
        name: shown to the user.
        files: the image files.
        labels: one integer per file.
        teacher: gives input shape (1 or 3 channels), normalisation and number of classes.

    Raises:
        DataError: as `EvaluationSet`; also on reading, when a file is not an image, or one with
            several frames, transparent pixels or values of unknown scale.
    """

    def __init__(
        self, name: str, files: Sequence[Path], labels: Sequence[int], teacher: Teacher
    ) -> None:
        super().__init__(name, np.asarray(labels, dtype=np.int64), teacher)
        if teacher.input_shape[0] not in (1, 3):
            raise DataError(
                f"{name}: image files have 1 or 3 channels, the model takes "
                f"{teacher.input_shape[0]}"
            )
        self._files = ImageFiles(name, list(files), teacher.input_shape)

    def stored_at(self, indices: Sequence[int]) -> Tensor:
        """Return images (B, C, H, W) uint8."""
        return torch.stack([self._files.decode(i) for i in indices])

    def stored(self, batch_size: int, *, workers: int | None, pinned: bool) -> Iterator[Tensor]:
        """Yield all images (B, C, H, W) uint8, decoded in worker processes."""
        if workers is None:
            workers = default_workers(self._files, batch_size)
        return decoded_batches(self._files, batch_size, workers=workers, pinned=pinned)


def folder_set(path: Path, teacher: Teacher, name: str) -> FolderSet:
    """Read a folder of images: with `labels.csv`, else with one subfolder per class.

    `labels.csv` has the columns `file` (relative to the folder) and `label` (0-based). Subfolders
    are the classes in alphabetical order and must be as many as the model has, unless all their
    names are integers: those are taken as the class indices themselves. Images may lie deeper in
    them; hidden files and folders are passed over at any depth.

    Raises:
        DataError: neither layout is found, or files or labels do not fit.
    """
    table = path / "labels.csv"
    files, labels = _from_table(table) if table.is_file() else _from_classes(path, teacher)
    return FolderSet(name, files, labels, teacher)


def picture_files(path: Path, teacher: Teacher) -> FolderSet:
    """All images in a folder at any depth, whatever they show: each has the label 0.

    Raises:
        DataError: there are none, or they do not fit.
    """
    files = _pictures(path)
    if not files:
        raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return FolderSet(path.name, files, [0] * len(files), teacher)


def _from_table(table: Path) -> tuple[list[Path], list[int]]:
    files: list[Path] = []
    labels: list[int] = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise DataError(
                f"{table} needs the columns 'file' and 'label', it has {reader.fieldnames}"
            )
        for row in reader:
            try:
                labels.append(int(row["label"]))
            except (TypeError, ValueError):
                raise DataError(
                    f"{table}, line {reader.line_num}: the label {row['label']!r} is not an integer"
                ) from None
            if not row["file"]:
                raise DataError(f"{table}, line {reader.line_num}: the file is missing")
            files.append(table.parent / row["file"])
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{table} cannot be read: {error}") from error
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise DataError(
            f"{table} names {len(absent)} files that are not there, first {', '.join(absent[:3])}"
        )
    return files, labels


def _from_classes(path: Path, teacher: Teacher) -> tuple[list[Path], list[int]]:
    folders = sorted(d for d in path.iterdir() if d.is_dir() and not _is_hidden(d, path))
    if not folders:
        raise DataError(
            f"{path} holds neither labels.csv nor subfolders; expected one subfolder of images per "
            "class, or labels.csv with the columns 'file' and 'label'"
        )
    if all(d.name.isdecimal() for d in folders):
        classes = [int(d.name) for d in folders]
    elif len(folders) == teacher.num_classes:
        classes = list(range(len(folders)))
    else:
        raise DataError(
            f"{path} has {len(folders)} class folders, but the model has {teacher.num_classes} "
            "classes; for a part of the classes, name the folders by class index or write "
            "labels.csv"
        )
    files: list[Path] = []
    labels: list[int] = []
    for folder, label in zip(folders, classes, strict=True):
        found = _pictures(folder)
        files += found
        labels += [label] * len(found)
    return files, labels


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        f
        for f in folder.rglob("*")
        if f.suffix.lower() in SUFFIXES and not _is_hidden(f, folder) and f.is_file()
    )


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path, or a folder between it and `folder`, is none of the user's images."""
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") or part == _DEBRIS for part in parts)
