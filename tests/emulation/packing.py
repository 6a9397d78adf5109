"""Packing on emulated CUDA kernels."""

import ctypes

import torch

from tests.emulation.launching import INT, LONG, POINTER, Launcher, fields


class Params(ctypes.Structure):
    """PackCodesParams of csrc/pack_codes.h."""

    _fields_ = fields((POINTER, "x y"), (LONG, "rows length"), (INT, "bits"))


class Packing:
    """The ops by their names."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def _run(self, name: str, x: torch.Tensor, y: torch.Tensor, bits: int, length: int):
        rows = len(x)
        if rows * length == 0:
            return y.clone()
        if length * bits % 8 == 0:
            rows, length = 1, rows * length
        sizes = {"rows": rows, "length": length, "bits": bits}
        result = self.launch.output(y)
        self.launch(name, Params, x=self.launch.input(x), y=result, **sizes)
        return result

    def pack_codes(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        rows, length = codes.shape
        y = torch.empty(rows, -(-length * bits // 8), dtype=torch.uint8)
        return self._run("pack", codes, y, bits, length)

    def unpack_codes(self, packed: torch.Tensor, bits: int, length: int) -> torch.Tensor:
        y = torch.empty(len(packed), length, dtype=torch.int8)
        return self._run("unpack", packed, y, bits, length)
