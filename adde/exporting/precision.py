"""Encoders of reduced precision: float16, or int8 calibrated on training pictures.

Outputs stay float32. So does the prototype memory, which is one small product followed by a
normalisation.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel

from adde.bundle import ENCODER
from adde.exporting.parity import MAX_ERROR
from adde.preprocess import Picture, Preprocess
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader
from adde.shards.shares import StoredOrder

Precision = Literal["fp32", "fp16", "int8"]

CALIBRATION_PICTURES = 256
"""Pictures of the training split that determine the ranges of int8."""

CALIBRATION_BATCH = 16
"""Pictures per batch of the calibration."""

FLOAT32_OPERATORS = (
    "BatchNormalization", "Clip", "Div", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "LpNormalization", "Pow", "ReduceL2", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Softmax", "Sqrt",
)  # fmt: skip
"""Normalising operators: squares of long rows overflow float16, and small norms underflow."""


@dataclass(frozen=True)
class Limits:
    """Allowed deviations of a bundle."""

    golden_error: float
    """Error of the golden vectors in a later check, relative to the largest value."""
    drop: float | None
    """Points that a metric may be below torch's; None: answers are compared one by one."""


LIMITS: dict[str, Limits] = {
    "fp32": Limits(MAX_ERROR, None),
    "fp16": Limits(0.02, 0.1),
    "int8": Limits(0.1, 1.0),
}


def candidates(precision: Precision) -> Sequence[str]:
    """List the parts that can be reduced, the most first."""
    return ("backbone and heads", "backbone") if precision == "int8" else ("all",)


def reduce_precision(
    folder: Path, precision: Precision, parts: str, calibration: Sequence[Picture]
) -> None:
    """Replace a folder's float32 encoder.onnx by one of another precision.

    Args:
        folder: of the bundle.
        precision: fp16 or int8.
        parts: one of `candidates`.
        calibration: batches of pictures (B, S, S, 3) uint8; for int8.
    """
    path = folder / ENCODER
    if precision == "fp16":
        model = float16.convert_float_to_float16(
            onnx.load(path),
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS],
        )
        _remove_repeated_nodes(model.graph)
        OnnxModel(model).topological_sort()  # the converter appends casts at the end
        onnx.save(model, path)
        return
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        plain, prepared = (str(Path(scratch) / name) for name in ("plain.onnx", "prepared.onnx"))
        model = onnx.load(path)
        # The exporter's shapes contradict those that the quantiser infers.
        del model.graph.value_info[:]
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        parts_to_quantise = ["Conv"] if parts == "backbone" else ["Conv", "Gemm", "MatMul"]
        # The heads are batched products, whose weights support only one scale.
        batched = {
            node.input[1]: [{"quant_type": QuantType.QInt8}]
            for node in onnx.load(prepared).graph.node
            if node.op_type == "MatMul"
        }
        quantize_static(
            prepared,
            str(path),
            _Pictures(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=parts_to_quantise,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": batched},
        )
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
    onnx.save(model, path)


def calibration_pictures(index: ShardIndex, preprocess: Preprocess) -> list[Picture]:
    """Read CALIBRATION_PICTURES evenly spaced training pictures: batches (B, S, S, 3) uint8."""
    shards = index.split("train")
    places = StoredOrder(tuple(s.samples for s in shards), index.count("train"))(0)
    rows = np.unique(np.linspace(0, len(places) - 1, CALIBRATION_PICTURES).astype(np.int64))
    reader = ShardReader(index)
    pictures: list[Picture] = []
    for shard, position in places[rows].tolist():
        sample = reader.read(shards[shard], position)
        pictures.append(preprocess.load(sample.picture, sample.where))
    reader.close()
    return [
        np.stack(pictures[at : at + CALIBRATION_BATCH])
        for at in range(0, len(pictures), CALIBRATION_BATCH)
    ]


def _remove_repeated_nodes(graph: Any) -> None:
    """Remove duplicate casts, which the converter adds if two float32 nodes share an input."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


class _Pictures(CalibrationDataReader):
    """Calibration batches in the form that the quantiser expects."""

    def __init__(self, batches: Sequence[Picture]) -> None:
        self._batches: Iterator[Picture] = iter(batches)

    def get_next(self) -> Any:
        """Return the encoder's inputs, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser, which recommends preprocessing that was already done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
