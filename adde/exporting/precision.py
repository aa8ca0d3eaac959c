"""The encoder in half or quarter the bits: float16, or int8 calibrated on training pictures.

Both take and give float32 outside. The memory stays float32: it is one small product, and what
follows it is a normalisation.
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
"""Pictures of the training split that int8's ranges are read from."""

CALIBRATION_BATCH = 16
"""Of them at a time."""

FLOAT32_OPERATORS = (
    "BatchNormalization", "Clip", "Div", "GroupNormalization", "InstanceNormalization",
    "LayerNormalization", "LpNormalization", "Pow", "ReduceL2", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "Softmax", "Sqrt",
)  # fmt: skip
"""What normalises: squares of long rows leave float16's range, and small norms its resolution."""


@dataclass(frozen=True)
class Limits:
    """What a bundle of a precision may differ by."""

    golden_error: float
    """Of the golden vectors where it is checked again, relative to the largest value."""
    drop: float | None
    """Points that a figure of the test split may be below torch's; None: compared answer by
    answer."""


LIMITS: dict[str, Limits] = {
    "fp32": Limits(MAX_ERROR, None),
    "fp16": Limits(0.02, 0.1),
    "int8": Limits(0.1, 1.0),
}


def candidates(precision: Precision) -> Sequence[str]:
    """Ways to reach a precision, the one with most in few bits first."""
    return ("backbone and heads", "backbone") if precision == "int8" else ("all",)


def reduce_precision(
    folder: Path, precision: Precision, parts: str, calibration: Sequence[Picture]
) -> None:
    """Replaces a folder's encoder.onnx, which is float32, by one of another precision.

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
        OnnxModel(model).topological_sort()  # casts are appended, and onnxruntime does not mind
        onnx.save(model, path)
        return
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        plain, prepared = (str(Path(scratch) / name) for name in ("plain.onnx", "prepared.onnx"))
        model = onnx.load(path)
        # Shapes that the exporter wrote down, which the quantiser would find contradicted.
        del model.graph.value_info[:]
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        parts_to_quantise = ["Conv"] if parts == "backbone" else ["Conv", "Gemm", "MatMul"]
        # The heads are batched products, whose weights can have one scale only.
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
    """Batches (B, S, S, 3) uint8 of up to CALIBRATION_PICTURES pictures, spread over the training split."""
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
    """Of a value that two nodes take in float32 the converter makes the same cast twice."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.output[0] in seen:
            graph.node.remove(node)
        seen.update(node.output)


class _Pictures(CalibrationDataReader):
    """What the quantiser asks for its batches."""

    def __init__(self, batches: Sequence[Picture]) -> None:
        self._batches: Iterator[Picture] = iter(batches)

    def get_next(self) -> Any:
        """The encoder's inputs, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser recommends what was done already."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
