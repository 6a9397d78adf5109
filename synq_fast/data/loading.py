"""Finding a labelled set by name or path."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from synq_fast.data.digits import digits_test
from synq_fast.data.evaluation_set import ArraySet, EvaluationSet
from synq_fast.data.image_folder import folder_set
from synq_fast.errors import DataError
from synq_fast.models.teacher import Teacher
from synq_fast.storage.paths import user_path

DATA_VARIABLE = "SYNQ_FAST_DATA"

DATASETS = {
    "digits": "360 handwritten digits, part of the package",
    "cifar10": "cifar10_test_1017.npz in SYNQ_FAST_DATA",
    "cifar100": "cifar100_test_916.npz in SYNQ_FAST_DATA",
    "imagenet-nips": "imagenet_nips_500 in SYNQ_FAST_DATA",
}

_FILES = {
    "cifar10": "cifar10_test_1017.npz",
    "cifar100": "cifar100_test_916.npz",
    "imagenet-nips": "imagenet_nips_500",
}


def data_root() -> Path:
    """Return the folder of real weights and images.

    The environment variable `SYNQ_FAST_DATA` names it; without the variable it is `../shared/data`,
    seen from the project's root, when that exists.

    Raises:
        DataError: there is no such folder.
    """
    given = os.environ.get(DATA_VARIABLE)
    if given:
        root = user_path(given)
        if not root.is_dir():
            raise DataError(f"{DATA_VARIABLE} is {given!r}, which is not a folder")
        return root
    root = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not root.is_dir():
        raise DataError(
            f"the data folder was not found: set {DATA_VARIABLE} to the folder that holds "
            f"{', '.join(_FILES.values())}"
        )
    return root


def load_dataset(name_or_path: str | os.PathLike[str], teacher: Teacher) -> EvaluationSet:
    """Load a labelled set, normalised for a teacher.

    Args:
        name_or_path: "digits" (in the package); "cifar10", "cifar100" or "imagenet-nips" (in the
            folder `SYNQ_FAST_DATA`); an .npz file with `images` (uint8, channels last or first, or
            floating point on a 0..1 scale) and `labels`; or a folder of images (see `folder_set`).
        teacher: gives input shape, normalisation and number of classes.

    Raises:
        DataError: nothing is found under the name, or images or labels do not fit the teacher.
    """
    name = os.fspath(name_or_path)
    if name == "digits":
        return ArraySet(name, *digits_test(), teacher)
    if name in _FILES:
        path = data_root() / _FILES[name]
        if not path.exists():
            raise DataError(f"{path.name} is not in {path.parent} (variable {DATA_VARIABLE})")
    else:
        path = user_path(name)
        name = path.name
    if path.is_dir():
        return folder_set(path, teacher, name)
    if path.suffix.lower() == ".npz" and path.is_file():
        return ArraySet(name, *_read_npz(path), teacher)
    if path.is_file():
        raise DataError(f"{path} is not a dataset: expected an .npz file or a folder of images")
    raise DataError(
        f"no dataset {os.fspath(name_or_path)!r}: it is neither a file nor a folder nor one of "
        f"{', '.join(DATASETS)}"
    )


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise DataError(f"{path} holds one array, expected an .npz file (numpy.savez)")
        with found as arrays:
            absent = {"images", "labels"} - set(arrays.files)
            if absent:
                raise DataError(
                    f"{path} needs the arrays 'images' and 'labels', it has {arrays.files}"
                )
            return arrays["images"], arrays["labels"]
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable .npz file ({error})") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read without pickle ({error}); store plain numeric arrays"
        ) from error
