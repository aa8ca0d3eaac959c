"""Export of a bundle as a model repository for NVIDIA Triton, with its onnxruntime backend.

Layout::

    adde_encoder/config.pbtxt, adde_encoder/1/encoder.onnx
    adde_memory/config.pbtxt, adde_memory/1/memory.onnx

Triton batches concurrent requests up to the session's largest bucket, but does not pad batches to a
bucket. On the CPU the last bits of a picture's outputs may therefore differ from `adde.serving`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnx

from adde.bundle import ENCODER, MEMORY, Bundle
from adde.errors import UserError
from adde.files import atomic_path, require_writable, unexpected_entries, write_text
from adde.serving.onnx.session import BUCKETS, STREAMS, cuda_options

MODELS = {"adde_encoder": ENCODER, "adde_memory": MEMORY}
TYPES = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}
ALGORITHM_SEARCHES = {"EXHAUSTIVE": "0", "HEURISTIC": "1", "DEFAULT": "2"}
PREFERRED_BATCHES = tuple(bucket for bucket in BUCKETS if bucket >= 8)

Kind = Literal["cpu", "gpu"]


def write_repository(
    bundle: Bundle,
    out: Path,
    kind: Kind,
    delay_us: int,
    instances: int | None,
) -> None:
    """Write the repository `out` atomically, replacing one that is there.

    Args:
        bundle: its graphs are copied.
        out: new, empty, or such a repository.
        kind: where Triton runs the graphs.
        delay_us: microseconds that a request waits for others to join its batch.
        instances: of each graph per GPU, or in total on the CPU; None: as the session.

    Raises:
        UserError: `out` contains other files, or a number is out of range.
    """
    count = (STREAMS if kind == "gpu" else 1) if instances is None else instances
    if not (1 <= count <= 64 and 0 <= delay_us <= 1_000_000):
        raise UserError(
            f"expected 1 to 64 instances and 0 to 1000000 us, found {count} and {delay_us}"
        )
    _require_replaceable(out)
    with atomic_path(out) as folder:
        for name, graph in MODELS.items():
            version = folder / name / "1"
            version.mkdir(parents=True)
            for file in (graph, f"{graph}.data"):  # large weights are stored beside the graph
                if (bundle.path / file).exists():
                    shutil.copyfile(bundle.path / file, version / file)
            text = config(name, bundle, kind, delay_us, count)
            write_text(folder / name / "config.pbtxt", text)


def config(name: str, bundle: Bundle, kind: Kind, delay_us: int, instances: int) -> str:
    """Write config.pbtxt of a graph, with the inputs and outputs of the graph itself."""
    file = MODELS[name]
    graph = onnx.load(bundle.path / file, load_external_data=False).graph
    lines = [
        _field("name", name),
        _field("backend", "onnxruntime"),
        _field("default_model_filename", file),
        f"max_batch_size: {BUCKETS[-1]}",
        *_tensors("input", graph.input),
        *_tensors("output", graph.output),
        "dynamic_batching {",
        f"  preferred_batch_size: {list(PREFERRED_BATCHES)}",
        f"  max_queue_delay_microseconds: {delay_us}",
        "}",
        f"instance_group [{{ count: {instances} kind: KIND_{kind.upper()} }}]",
    ]
    about = {"bundle": bundle.hash, "precision": bundle.details["precision"]}
    if kind == "gpu":
        options = cuda_options(about["precision"] == "fp16")
        # If there are parameters, the backend reads this option from them, as a number.
        about["cudnn_conv_algo_search"] = ALGORITHM_SEARCHES[options.pop("cudnn_conv_algo_search")]
        lines += _accelerator(options)
    lines += [_parameter(key, value) for key, value in about.items()]
    return "\n".join(lines) + "\n"


def _accelerator(options: Mapping[str, str]) -> list[str]:
    fields = [f"{_field('key', key)} {_field('value', value)}" for key, value in options.items()]
    return [
        "optimization { execution_accelerators { gpu_execution_accelerator [{",
        f"  {_field('name', 'cuda')}",
        *(f"  parameters {{ {field} }}" for field in fields),
        "}] } }",
    ]


def _tensors(side: str, tensors: Any) -> list[str]:
    """Format a graph's inputs or outputs; Triton prepends the batch to `dims`."""
    entries = []
    for tensor in tensors:
        kind = TYPES[tensor.type.tensor_type.elem_type]
        dims = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim[1:]]
        fields = f"{_field('name', tensor.name)} data_type: {kind} dims: {dims}"
        entries.append(f"{side} [{{ {fields} }}]")
    return entries


def _field(name: str, value: str) -> str:
    return f"{name}: {json.dumps(value)}"


def _parameter(key: str, value: str) -> str:
    shown = f"{_field('key', key)} value {{ {_field('string_value', value)} }}"
    return f"parameters {{ {shown} }}"


def _require_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for the repository, found a file; name another")
    if others := unexpected_entries(out, lambda name: name in MODELS):
        raise UserError(
            f"{out}: expected a new folder or one with nothing but {', '.join(MODELS)}, which are "
            f"replaced, found {', '.join(others[:3])}; name another"
        )
    require_writable(out)
