"""The runtimes in which exported files are tried: ONNX Runtime and OpenVINO on CPUs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from synq_fast.deployment.onnx_file import INPUT
from synq_fast.runtime.extras import needs

_AT_ONCE = 32


@dataclass(frozen=True)
class Operator:
    """A node of the graph that a runtime made of a file."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Runtime(Protocol):
    """Something that runs a file."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        ...


class OnnxRuntime:
    """A file in ONNX Runtime's CPU provider."""

    def __init__(
        self,
        content: bytes,
        *,
        optimized: bool = True,
        threads: int = 0,
        batch: int | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Load a file.

        Args:
            content: the file.
            optimized: let it rewrite the graph as it does by default.
            threads: within an operator; 0: ONNX Runtime's own choice.
            batch: the number of images that the file takes; None: any.
            outputs: names of values to give instead of the logits.
        """
        needs("export", "ONNX Runtime")
        import onnxruntime

        self.name = "ONNX Runtime" if optimized else "ONNX Runtime without optimizations"
        self.version: str = onnxruntime.__version__
        self._batch, self._outputs = batch, list(outputs) or None
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = threads
        levels = onnxruntime.GraphOptimizationLevel
        settings.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        )
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "optimized.onnx"
            settings.optimized_model_filepath = str(written)
            self._session = onnxruntime.InferenceSession(
                content, settings, providers=["CPUExecutionProvider"]
            )
            self._graph = written.read_bytes()

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        (logits,) = self.values(images)
        return logits

    def values(self, images: Tensor) -> list[Tensor]:
        """The outputs that were asked for, of images (B, C, H, W)."""
        size = self._batch or _AT_ONCE
        parts = []
        for part in images.split(size):
            missing = (self._batch or len(part)) - len(part)
            padded = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            given = {INPUT: padded.contiguous().cpu().numpy()}
            found = self._session.run(self._outputs, given)
            parts.append([_without_padding(torch.from_numpy(v), missing, size) for v in found])
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def operators(self) -> list[Operator]:
        """The nodes that it runs."""
        import onnx

        graph = onnx.load_from_string(self._graph).graph
        return [Operator(n.op_type, n.name, (*n.input,), (*n.output,)) for n in graph.node]


class OpenVino:
    """A file in OpenVINO's CPU plugin, in the arithmetic of the file."""

    name = "OpenVINO"

    def __init__(self, content: bytes, *, threads: int = 0, batch: int | None = None) -> None:
        """Load a file; arguments as for ``OnnxRuntime``."""
        needs("openvino", "a check in OpenVINO")
        import openvino

        self.version: str = openvino.__version__
        self._batch = batch
        # By default it may round to bfloat16, and quantizes inputs of float layers on its own.
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self._model = core.compile_model(core.read_model(content), "CPU", settings)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        size = self._batch or _AT_ONCE
        parts = []
        for part in images.split(size):
            missing = (self._batch or len(part)) - len(part)
            padded = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
            found = self._model(padded.contiguous().cpu().numpy())[0]
            parts.append(_without_padding(torch.from_numpy(found.copy()), missing, size))
        return torch.cat(parts)

    def operators(self) -> list[Operator]:
        """The nodes that it runs; ``kind`` ends in the type of numbers that each computes with."""
        found = []
        for node in self._model.get_runtime_model().get_ordered_ops():
            told = node.get_rt_info()
            kind = f"{_told(told, 'layerType')} {_told(told, 'runtimePrecision')}"
            original = _told(told, "originalLayersNames").split(",")
            name = node.get_friendly_name()
            found.append(Operator(kind, name, (*original, name.partition("/")[0]), ()))
        return found


def _without_padding(value: Tensor, missing: int, size: int) -> Tensor:
    """What a value says of the images before ``missing`` ones were added to make ``size``."""
    # Windows of an image have rows of their own.
    return value[: len(value) - missing * (len(value) // size)] if missing else value


def _told(told: Any, key: str) -> str:
    # No dictionary, but a map of C++ with its subscription alone.
    value = told[key] if key in told else ""  # noqa: SIM401
    return str(getattr(value, "value", value))
