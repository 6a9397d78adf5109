"""What reports say of a run and what they find its networks and images by."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from synq_fast.ops import _installation

if TYPE_CHECKING:
    from synq_fast.engine.run import Run

UNRECORDED = "not recorded"


def about(run: Run) -> dict[str, Any]:
    """The network, where its weights and the images are, versions and machine, as JSON's values.

    Nothing depends on it; of a resumed run it is what the last process saw.
    """
    teacher, folder = run.teacher, run.folder
    assert folder is not None
    info = _installation.report()
    machine = {**info.system, "device": str(run.device), "processes": str(run.ranks.size)}
    if info.device is not None:
        machine["GPU"] = info.device
    if info.cpu_isa is not None:
        machine["CPU kernels"] = info.cpu_isa
    return {
        "network": {
            "name": teacher.name,
            "options": {name: recorded(value) for name, value in teacher.options.items()},
            "input_shape": teacher.input_shape,
            "mean": teacher.mean,
            "std": teacher.std,
            "num_classes": teacher.num_classes,
            "source": teacher.source,
        },
        "bank": run.bank_folder and os.path.relpath(run.bank_folder, folder.path),
        "recipe": run.recipe.name,
        "versions": info.versions,
        "machine": machine,
    }


def recorded(value: Any) -> Any:
    """A value as JSON keeps it; what JSON cannot keep is described, for the error at loading."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return {UNRECORDED: repr(value)}
