"""Triton kernels of the fused ops, installed as `synq_fast.kernels`.

Each module holds one op's kernels and a launcher that takes and returns tensors. The launchers are
behind `torch.ops.synq_fast.<op>.triton`; `synq_fast.ops` checks the arguments. `int8_codes` and
`int8_product` are no ops: networks in integers (`synq_fast.deployment.execution`) call them.
Tensors live on a GPU, or on the CPU when TRITON_INTERPRET=1 was set before Triton was imported.
"""

import importlib
import pkgutil
from types import FunctionType

try:
    import triton  # noqa: F401  (the check is the import)
except ImportError as error:
    raise ImportError(
        "synq_fast.kernels needs Triton, which is not installed; `pip install triton`, "
        "or use another backend (synq_fast.ops.available_backends() lists them)"
    ) from error

__all__ = []
for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        for _name, _value in vars(importlib.import_module(f"{__name__}.{_module.name}")).items():
            # The launchers bear their op's name.
            if isinstance(_value, FunctionType) and _name.startswith(_module.name):
                globals()[_name] = _value
                __all__.append(_name)
