"""What an export found, as a person reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synq_fast.deployment.latency import Latency
from synq_fast.deployment.verification import Check


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent on labelled images, and what is within chance."""

    fake_quantized: float
    frozen: float
    exported: float | None
    """In the runtime; None where no check ran one."""
    images: int
    standard_error: float
    """Of the fake-quantized model's."""

    def __str__(self) -> str:
        exported = "" if self.exported is None else f", file {self.exported:.2f}"
        return (
            f"top-1 on {self.images} images: fake-quantized {self.fake_quantized:.2f}, frozen "
            f"{self.frozen:.2f}{exported} % (standard error {self.standard_error:.2f})"
        )


@dataclass(frozen=True)
class LayerRow:
    """One layer, as frozen."""

    name: str
    bits: int
    signal_to_noise: float
    """Of its output against the network without quantizers, in dB."""
    same_codes: float | None
    """Share of the codes behind it that the file gives as the frozen network."""


@dataclass(frozen=True)
class ExportReport:
    """A written file and what was found out about it."""

    path: Path
    target: str
    bits: str
    placement: str
    bytes: int
    float_bytes: int
    """Of the float network in the same format."""
    checks: tuple[Check, ...] = ()
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    layers: tuple[LayerRow, ...] = ()
    """Filled where a comparison of layers was asked for."""

    def lines(self) -> list[str]:
        """What the command prints."""
        share = 100 * self.bytes / self.float_bytes
        found = [f"{self.path}: {self.bits}, for {self.target}, placement {self.placement}"]
        for check in self.checks:
            found += check.lines()
        if self.accuracy is not None:
            found.append(str(self.accuracy))
        found.append(f"{self.bytes:,} bytes, {share:.1f} % of float32's {self.float_bytes:,}")
        if self.latency is not None:
            found.append(str(self.latency))
        if self.layers:
            found += self._table()
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's values."""
        values: dict[str, Any] = json.loads(json.dumps({**asdict(self), "path": self.path.name}))
        return values

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _table(self) -> list[str]:
        width = max(len(row.name) for row in self.layers)
        head = f"{'layer':{width}}  bits  signal to noise  same codes"
        rows = [
            f"{row.name:{width}}  {row.bits:4}  {row.signal_to_noise:12.1f} dB"
            + ("" if row.same_codes is None else f"  {100 * row.same_codes:8.2f} %")
            for row in self.layers
        ]
        return [head, *rows]
