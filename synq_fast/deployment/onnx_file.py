"""Frozen networks as ONNX files of opset 21."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from synq_fast.deployment.freezing import frozen_layers
from synq_fast.deployment.frozen import FrozenLayer
from synq_fast.deployment.qdq import (
    DEQUANTIZE,
    GLOBAL_AVERAGE,
    QUANTIZE_DEQUANTIZE,
    qdq_form,
    quantizers_at,
)
from synq_fast.deployment.targets import Target
from synq_fast.errors import ModelError
from synq_fast.runtime.extras import needs
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

OPSET = 21
"""The newest that ONNX Runtime 1.23 loads, and the oldest with 4-bit numbers."""
INPUT, OUTPUT = "images", "logits"
_FOUR_BITS = 4
_UINT8 = 255
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def onnx_bytes(
    frozen: fx.GraphModule,
    input_shape: tuple[int, int, int],
    target: Target,
    *,
    batch: int | None = None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A frozen network as the content of an ONNX file.

    Args:
        frozen: a result of ``freeze``.
        input_shape: (C, H, W) of one image.
        target: the runtime that it is for.
        batch: number of images at a time; None: any.
        normalization: mean and deviation of each channel to be part of the file, which then takes
            images on a 0..1 scale.
        metadata: texts that the file holds.

    Raises:
        ModelError: an operation of the network cannot be written, named with its layer; or the
            target cannot hold an activation.
        MissingExtraError: the ``export`` extra is not installed.
    """
    needs("export", "an ONNX file")
    network = qdq_form(frozen, target, normalization).cpu()
    program = _program(network, input_shape, target, batch)
    model = program.model
    _name(model, network)
    for name, layer in frozen_layers(frozen).items():
        if layer.bits <= _FOUR_BITS:
            _store_four_bits(model, name, layer)
    _strip(model)
    model.producer_name = "synq-fast"
    model.metadata_props.update(metadata or {})
    import onnx_ir

    written = onnx_ir.to_proto(model)
    del written.graph.value_info[:]  # types of values, which runtimes infer
    content: bytes = written.SerializeToString()
    return content


def _program(
    network: fx.GraphModule, input_shape: tuple[int, int, int], target: Target, batch: int | None
) -> Any:
    # Two, since one image would be taken for a constant.
    example = torch.zeros(batch or 2, *input_shape, dtype=torch.float32)
    try:
        with _quiet():
            return torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
                custom_translation_table=_translations(target),
                verbose=False,
            )
    except Exception as error:  # the exporter's own types are many, and private
        pass_on_memory_errors(error)
        raise ModelError(_cannot(network, example, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice on versions to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cannot(network: fx.GraphModule, example: Tensor, error: Exception) -> str:
    """What stands in the way, with the name of the node where that can be told."""
    text = str(error.__cause__ or error)
    place = ""
    for node in network.graph.nodes:
        if node.op.startswith("call_") and f"%{node.name} " in text + " ":
            place = f' at "{node.name}"'
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return (
        f"the network cannot be written as ONNX{place}: {first}. Keep the part whole with "
        f"quantization.leaf_modules only if its operations exist in ONNX; else rewrite its forward"
    )


def _translations(target: Target) -> dict[Any, Callable[..., Any]]:
    """What the exporter writes for the operations that stand for quantizers."""
    import numpy
    import onnx_ir
    import onnxscript

    op: Any = onnxscript.opset21

    kind = numpy.int8 if target.signed else numpy.uint8

    def constant(value: float, dtype: Any) -> Any:
        return op.Constant(value=onnx_ir.tensor(numpy.array(value, dtype)))

    def write_quantizer(x: Any, scale: float, zero_point: int, highest: int) -> Any:
        shift = target.shift("", highest.bit_length(), zero_point)
        step, zero = constant(scale, numpy.float32), constant(zero_point - shift, kind)
        low, high = -shift, highest - shift
        if target.centred and highest < _UINT8:
            # The form that TensorRT joins with the layer before it.
            ends = (constant(end * scale, numpy.float32) for end in (low, high))
            return op.DequantizeLinear(op.QuantizeLinear(op.Clip(x, *ends), step, zero), step, zero)
        codes = op.QuantizeLinear(x, step, zero)
        if highest < _UINT8:
            codes = op.Clip(codes, constant(low, kind), constant(high, kind))
        return op.DequantizeLinear(codes, step, zero)

    def write_codes(codes: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(codes, scale, zero_point, axis=0)

    def write_average(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    return {
        QUANTIZE_DEQUANTIZE: write_quantizer,
        DEQUANTIZE: write_codes,
        GLOBAL_AVERAGE: write_average,
    }


def _name(model: Any, network: fx.GraphModule) -> None:
    """Call layers and quantized values in the file as in the network, for whoever looks."""
    counts = {n.name: quantizers_at(network, n) for n in network.graph.nodes}
    values = [(name, head, count) for name, count in counts.items() for head in range(count)]
    written = [
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].producer() is not None
    ]
    if len(values) == len(written):  # the exporter drops what nobody reads
        for (name, head, count), node in zip(values, written, strict=True):
            node.name = node.outputs[0].name = name if count == 1 else f"{name}.{head}"
            if count > 1 and head == 0:
                joined = node
                while joined.op_type != "Concat":
                    ((joined, _),) = joined.outputs[0].uses()
                joined.name = joined.outputs[0].name = name
    # Equal tensors are one in the file, so that a second layer may read the first one's.
    layers = {str(n.target) for n in network.graph.nodes if n.op == "call_module"}
    for node in model.graph:
        weight = node.inputs[1].producer() if node.op_type in _PRODUCTS else None
        while weight is not None and weight.op_type == "Transpose":
            weight = weight.inputs[0].producer()
        if weight is not None and weight.op_type == "DequantizeLinear":
            layer = str(weight.inputs[0].name).rpartition(".")[0]
            if layer in layers:
                node.name = layer
                layers.remove(layer)


def _store_four_bits(model: Any, name: str, layer: FrozenLayer) -> None:
    """Let runtimes compute the codes of a layer when they load them, from two in each byte.

    A DequantizeLinear of 4-bit codes would leave the layer in floating point: ONNX Runtime and
    OpenVINO fold this chain of casts instead.
    """
    import ml_dtypes
    import numpy
    import onnx_ir

    codes = model.graph.initializers.get(f"{name}.codes")
    if codes is None:
        return
    shape = (-1, *(1,) * (layer.stored.dim() - 1))

    def initializer(suffix: str, values: Any) -> Any:
        tensor = onnx_ir.tensor(values, name=f"{name}.{suffix}")
        kind: Any = onnx_ir.TensorType(tensor.dtype)
        value = onnx_ir.Value(name=tensor.name, shape=onnx_ir.Shape(values.shape), type=kind)
        value.const_value = tensor
        model.graph.register_initializer(value)
        return value

    def whole(values: Tensor) -> Any:
        return values.view(shape).cpu().numpy().astype(numpy.int32)

    int32, int8 = onnx_ir.DataType.INT32.value, onnx_ir.DataType.INT8.value
    stored = initializer("stored", layer.stored.cpu().numpy().astype(ml_dtypes.int4))
    chain = [onnx_ir.node("Cast", [stored], {"to": int32})]
    for kind, suffix, values in (
        ("Add", "zero_points", layer.zero_point),
        ("Mul", "multipliers", layer.multiplier),
    ):
        operand = initializer(suffix, whole(values))
        chain.append(onnx_ir.node(kind, [chain[-1].outputs[0], operand]))
    chain.append(onnx_ir.node("Cast", [chain[-1].outputs[0]], {"to": int8}))
    for node in chain:
        node.name = f"{name}.{node.op_type}_{chain.index(node)}"
    result = chain[-1].outputs[0]
    result.name = f"{name}.weight"
    del model.graph.initializers[f"{name}.codes"]
    for user, index in list(codes.uses()):
        user.replace_input_with(index, result)
    model.graph.insert_before(model.graph[0], chain)


def _strip(model: Any) -> None:
    """Remove what the exporter notes for itself: stack traces, local paths, shapes."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        # The zero point says it, and ONNX Runtime contradicts it when it moves the node.
        node.attributes.pop("output_dtype", None)
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
