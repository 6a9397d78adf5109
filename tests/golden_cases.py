"""Access to the cases of a file of golden values."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def golden_cases(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each case `cNN` as a dict: tensors, and Python values for the scalars."""
    names = sorted({key.partition("_")[0] for key in arrays})
    assert names, "the golden file is empty"
    for name in names:
        yield (
            name,
            {
                key.partition("_")[2]: _convert(arrays[key])
                for key in arrays
                if key.startswith(f"{name}_")
            },
        )


def _convert(array: np.ndarray) -> Any:
    return array.item() if array.ndim == 0 else torch.from_numpy(array.copy())
