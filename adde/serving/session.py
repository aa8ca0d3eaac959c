"""The two graphs of a bundle, run by onnxruntime on a named device."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as untyped  # pyright: ignore[reportMissingTypeStubs]

from adde.bundle import Bundle
from adde.errors import UserError
from adde.preprocess import Picture
from adde.schema import Vector

onnxruntime: Any = untyped

Device = Literal["cpu", "cuda"]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Session:
    """Encoder and memory of one bundle; calls may come from several threads.

    Raises:
        UserError: onnxruntime cannot read a graph, or does not give the device asked for.
    """

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        side, attributes = bundle.preprocess.size, len(bundle.schema.sizes)
        self._picture = (side, side, 3)
        self._embedding = (attributes, bundle.width)
        self._indicator = (bundle.schema.num_values,)
        self._encoder = _open(bundle.encoder, device)
        self._memory = _open(bundle.memory, device)

    def encode(self, images: Picture) -> tuple[Vector, Vector]:
        """Pictures (B, S, S, 3) uint8 -> embeddings (B, A, D) and logits (B, V), float32."""
        _check("images", images, self._picture, np.uint8)
        embeddings, logits = self._encoder.run(["embeddings", "logits"], {"images": images})
        return embeddings, logits

    def edit(self, embeddings: Vector, indicator: Vector) -> Vector:
        """Embeddings (B, A, D) and indicator (B, V) -> L2-normalised queries (B, A D), float32."""
        _check("embeddings", embeddings, self._embedding, np.float32)
        _check("indicator", indicator, self._indicator, np.float32)
        if len(embeddings) != len(indicator):
            raise ValueError(
                f"expected as many indicators as embeddings, found {len(indicator)} and "
                f"{len(embeddings)}"
            )
        inputs = {"embeddings": embeddings, "indicator": indicator}
        return self._memory.run(["query"], inputs)[0]


def _check(
    name: str, array: npt.NDArray[Any], row: tuple[int, ...], kind: type[np.generic]
) -> None:
    if array.dtype != kind or array.shape[1:] != row or array.ndim != len(row) + 1:
        raise ValueError(
            f"{name}: expected {kind.__name__} of shape (batch, {', '.join(map(str, row))}), "
            f"found {array.dtype} of shape {array.shape}"
        )


def _open(path: Path, device: Device) -> Any:
    options = onnxruntime.SessionOptions()
    # Left to itself onnxruntime counts the machine's cores, not those this process may use.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    wanted = PROVIDERS[device]
    if device == "cuda":
        # Finds the CUDA libraries that pip installed, which else only `import torch` loads. It
        # prints what it misses, and standard output belongs to answers.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[wanted])
    except Exception as error:  # onnxruntime's exceptions have no common base but this one
        raise UserError(f"{path}: onnxruntime cannot open it: {error}") from error
    # Without the device's libraries onnxruntime logs a line and takes the CPU.
    if session.get_providers()[0] != wanted:
        raise UserError(
            f"{path}: expected onnxruntime to run on {device} ({wanted}), found "
            f"{', '.join(session.get_providers())}; check the driver and the CUDA libraries "
            "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or ask for cpu"
        )
    return session
