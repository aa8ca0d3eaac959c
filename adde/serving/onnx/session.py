"""Run the graphs of a bundle with onnxruntime on named devices."""

import contextlib
import queue
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adde.bundle import DECODER, STYLE, Bundle, Outputs
from adde.errors import UserError
from adde.files import cache_folder
from adde.preprocess import Picture
from adde.schema import Vector
from adde.serving.onnx.binding import Array, Graph, Lane
from adde.serving.onnx.cores import cores
from adde.serving.onnx.providers import (
    PROVIDERS,
    RECORD,
    Device,
    active_providers,
    missing,
    onnxruntime,
    preload,
    tensorrt_version,
)

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes on a GPU; smaller batches are padded, larger ones split."""

STREAMS = 2
"""Concurrent batches. On a GPU one is copied while another is computed. On a CPU each gets half of
the threads: threads of one batch synchronise after every layer, which is slow when decoders and
clients share the cores; those of two batches do not wait for each other.
"""


class Session:
    """Encoder and memory of one bundle; safe to call from several threads.

    Args:
        bundle: what to run.
        devices: one, or several in order of preference. TensorRT passes unsupported nodes to the
            next. All named devices must be available, and the first must run some nodes.
        allow_fallback: if a device is unavailable, warn on stderr and use the others or the CPU.
        threads: CPU threads per batch; None: all usable cores.

    Raises:
        UserError: onnxruntime cannot read a graph, or a requested device is unavailable; names the
            missing library.
    """

    def __init__(
        self,
        bundle: Bundle,
        devices: Device | Sequence[Device] = "cpu",
        allow_fallback: bool = False,
        threads: int | None = None,
    ) -> None:
        asked: Sequence[Device] = (devices,) if isinstance(devices, str) else devices
        side, attributes = bundle.preprocess.size, len(bundle.schema.sizes)
        f32 = np.float32
        embedding = (attributes, bundle.width), f32
        indicator = (bundle.schema.num_values,), f32
        outputs = {"embeddings": embedding, "logits": indicator}
        if bundle.details["presence"]:
            outputs["presence"] = (attributes,), f32
        encoder = Graph({"images": ((side, side, 3), np.uint8)}, outputs)
        memory = Graph(
            {"embeddings": embedding, "indicator": indicator},
            {"query": ((attributes * bundle.width,), f32)},
        )
        preload(asked)
        obtained = _available_devices(asked, bundle.details["precision"], allow_fallback)
        # By default onnxruntime uses all cores of the machine, not only the usable ones.
        count = threads or cores()
        self._encoder = _Runner(
            bundle, bundle.encoder, encoder, obtained, count, -(-count // STREAMS)
        )
        self._memory = _Runner(bundle, bundle.memory, memory, obtained, count, count)
        self._outfit = self._style = self._decoder = None
        if bundle.drawing is not None:
            style, size = (bundle.drawing.style,), bundle.drawing.size
            pictures = {"pictures": ((size, size, 3), np.uint8)}
            graph = Graph({"images": ((side, side, 3), np.uint8)}, {"style": (style, f32)})
            self._style = _Runner(bundle, bundle.path / STYLE, graph, obtained, count, count)
            graph = Graph({"embeddings": embedding, "style": (style, f32)}, pictures)
            self._decoder = _Runner(bundle, bundle.path / DECODER, graph, obtained, count, count)
        if bundle.category is not None:
            row = (bundle.schema.sizes[bundle.category], bundle.schema.num_values), f32
            outfit = Graph({"outfit": row}, {"queries": row})
            self._outfit = _Runner(bundle, bundle.outfit, outfit, obtained, count, count)

    @property
    def providers(self) -> tuple[str, ...]:
        """Providers that run nodes of the encoder, first choice first."""
        return self._encoder.providers

    def encode(self, images: Picture) -> Outputs:
        """Encode pictures (B, S, S, 3) uint8.

        On the CPU a picture's result does not depend on its batch, to the last bit.
        """
        embeddings, logits, *presence = self._encoder.run({"images": images})
        return Outputs(embeddings, logits, presence[0] if presence else None)

    def edit(self, embeddings: Vector, indicator: Vector) -> Vector:
        """Edit embeddings (B, A, D) by indicators (B, V); return L2-normalised queries (B, A D),
        float32.
        """
        return self._memory.run({"embeddings": embeddings, "indicator": indicator})[0]

    def complete(self, outfit: Vector) -> Vector:
        """Turn mean outfits (B, C, V) into queries (B, C, V), float32; needs an outfit head."""
        if self._outfit is None:
            raise ValueError("expected a bundle with an outfit head, found none")
        return self._outfit.run({"outfit": outfit})[0]

    def style(self, images: Picture) -> Vector:
        """Return the styles (B, L) of pictures (B, S, S, 3) uint8; needs a decoder."""
        if self._style is None:
            raise ValueError("expected a bundle with a decoder, found none")
        return self._style.run({"images": images})[0]

    def draw(self, embeddings: Vector, style: Vector) -> Picture:
        """Draw embeddings (B, A, D) in styles (B, L), (B, T, T, 3) uint8; needs a decoder."""
        if self._decoder is None:
            raise ValueError("expected a bundle with a decoder, found none")
        return self._decoder.run({"embeddings": embeddings, "style": style})[0]

    def warm_up(self) -> None:
        """Run all graphs at every batch size, so that first requests are not slow."""
        for batch in BUCKETS:
            self._encoder.warm_up(batch)
            self._memory.warm_up(batch)
        for runner in (self._outfit, self._style, self._decoder):
            if runner is not None:
                runner.warm_up(1)  # requests run them one by one


class _Runner:
    """Runs one graph: checks inputs, pads and splits batches, dispatches them to lanes.

    `threads` is for a batch that runs alone on the CPU, `shared_threads` for concurrent ones. If
    they differ, a second session is opened; results are bitwise equal.
    """

    def __init__(
        self,
        bundle: Bundle,
        path: Path,
        graph: Graph,
        devices: Sequence[Device],
        threads: int,
        shared_threads: int,
    ) -> None:
        self._graph = graph
        options: dict[Device, dict[str, str]] = {
            name: _options(name, graph, bundle) for name in devices
        }
        self._session = self._shared = _open(path, options, threads)
        self.providers = active_providers(self._session)
        self._on_cpu = self.providers[0] == PROVIDERS["cpu"]
        if self._on_cpu and shared_threads < threads:
            self._shared = _open(path, options, shared_threads)
        self._lanes: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        for _ in range(STREAMS):
            self._lanes.put(None if self._on_cpu else Lane(self._session, graph, "cuda"))

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run inputs of any batch size; return outputs in the graph's order."""
        batches = {name: _check(name, inputs[name], *self._graph.inputs[name]) for name in inputs}
        if len(set(batches.values())) != 1:
            found = ", ".join(f"{count} {name}" for name, count in batches.items())
            raise ValueError(f"expected inputs of one batch size, found {found}")
        batch = next(iter(batches.values()))
        if batch == 0:
            shapes = self._graph.outputs.values()
            return [np.empty((0, *shape), kind) for shape, kind in shapes]
        largest = BUCKETS[-1]
        parts = [
            self._run_part({name: array[at : at + largest] for name, array in inputs.items()})
            for at in range(0, batch, largest)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts)] if parts[1:] else [*parts[0]]

    def _run_part(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        batch = len(next(iter(inputs.values())))
        if self._on_cpu:
            # onnxruntime uses different code for a single row, which changes the last bits. Never
            # running a row alone keeps results independent of the batch.
            filled = max(2, batch)
        else:
            filled = next(bucket for bucket in BUCKETS if bucket >= batch)
        rows = _pad(inputs, filled)
        lane = self._lanes.get()
        try:
            if lane is not None:
                outputs = lane.run(rows)
            else:
                alone = self._lanes.qsize() == STREAMS - 1
                session = self._session if alone else self._shared
                outputs = session.run(list(self._graph.outputs), rows)
        finally:
            self._lanes.put(lane)
        return outputs if filled == batch else [output[:batch] for output in outputs]

    def warm_up(self, batch: int) -> None:
        """Run zeros of one batch size through every lane. Once is enough on a CPU, which has no
        buffers or engines to create.
        """
        inputs = self._graph.inputs.items()
        zeros = {name: np.zeros((batch, *row), kind) for name, (row, kind) in inputs}
        for _ in range(1 if self._on_cpu else STREAMS):  # a lane goes to the end of the queue
            self._run_part(zeros)


def _pad(inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
    def fill(array: Array) -> Array:
        short = batch - len(array)
        return np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) if short else array

    return {name: fill(array) for name, array in inputs.items()}


def _check(name: str, array: Array, row: tuple[int, ...], kind: type[np.generic]) -> int:
    if array.dtype != kind or array.shape[1:] != row or array.ndim != len(row) + 1:
        raise ValueError(
            f"{name}: expected {kind.__name__} of shape (batch, {', '.join(map(str, row))}), "
            f"found {array.dtype} of shape {array.shape}"
        )
    return len(array)


def _options(device: Device, graph: Graph, bundle: Bundle) -> dict[str, str]:
    """Options of a provider."""
    if device == "cuda":
        return cuda_options(bundle.details["precision"] == "fp16")
    if device == "cpu":
        return {}
    # Building an engine takes minutes, so engines are cached, one for all batch sizes. The key has
    # TensorRT's version, because other versions cannot read the engine.
    engines = cache_folder() / "tensorrt" / f"{bundle.hash[:32]}-{tensorrt_version()}"
    engines.mkdir(parents=True, exist_ok=True)

    def profile(batch: int) -> str:
        rows = graph.inputs.items()
        return ",".join(f"{name}:{'x'.join(map(str, (batch, *row)))}" for name, (row, _) in rows)

    return {
        # Otherwise TensorRT may compute float32 parts of an fp16 graph in float16. With no
        # precision enabled, it takes every type from the graph (strong typing).
        "trt_fp16_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engines),
        "trt_profile_min_shapes": profile(BUCKETS[0]),
        "trt_profile_opt_shapes": profile(BUCKETS[-1] // 2),
        "trt_profile_max_shapes": profile(BUCKETS[-1]),
    }


def cuda_options(half: bool) -> dict[str, str]:
    """Options of the CUDA provider for a graph in fp16 or float32."""
    return {
        # TF32 rounds to 10 bits, which a float32 bundle's parity report does not cover. fp16 graphs
        # need it to run on tensor cores.
        "use_tf32": "1" if half else "0",
        # Convolutions are re-planned whenever the batch size changes; the default would benchmark
        # every algorithm each time (onnxruntime 23006).
        "cudnn_conv_algo_search": "HEURISTIC",
    }


def _available_devices(
    devices: Sequence[Device], precision: str, allow_fallback: bool
) -> Sequence[Device]:
    """Return the available ones of the requested devices, or raise.

    onnxruntime itself would log a line, use the CPU and still list the device as available
    (onnxruntime 23372).
    """
    lacking = {device: why for device in devices if (why := missing(device, precision))}
    if lacking:
        reasons = "; ".join(dict.fromkeys(reason for why in lacking.values() for reason in why))
        message = f"expected onnxruntime to run on {', '.join(lacking)}, which it cannot: {reasons}"
        if not allow_fallback:
            raise UserError(f"{message}; or use --allow-fallback, or --device cpu")
        print(f"warning: {message}", file=sys.stderr)
    return [device for device in devices if device not in lacking] or ["cpu"]


def _open(path: Path, devices: Mapping[Device, dict[str, str]], threads: int) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry(RECORD, "1")
    wanted = [PROVIDERS[device] for device in devices]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # onnxruntime prints when it falls back
            session = onnxruntime.InferenceSession(
                path, settings, providers=list(zip(wanted, devices.values()))
            )
    except Exception as error:  # onnxruntime's exceptions have no common base but this one
        raise UserError(f"{path}: onnxruntime cannot open it: {error}") from error
    registered, found = session.get_providers(), active_providers(session)
    # Only the first must run nodes; the others take what it does not support.
    if not set(wanted) <= set(registered) or wanted[0] not in found:
        raise UserError(
            f"{path}: expected onnxruntime to run on {', '.join(wanted)}, found providers "
            f"{', '.join(registered)}, of which {', '.join(found)} run nodes; no known library is "
            "missing, see onnxruntime's log above and python serve_onnx/doctor.py"
        )
    return session
