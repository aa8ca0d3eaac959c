r"""Show which devices onnxruntime can use on this machine, and what the others lack.

python serve_onnx/doctor.py
python serve_onnx/doctor.py --require cuda --bundle bundles/quickstart
"""

import base64
import ctypes
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro

from adde.bundle import Bundle
from adde.errors import UserError, run_program
from adde.serving.onnx.providers import (
    CUDNN,
    DRIVER,
    PROVIDERS,
    RECORD,
    TENSORRT,
    Device,
    active_providers,
    format_cuda_version,
    missing,
    onnxruntime,
    preload,
    read_int,
    tensorrt_version,
)
from adde.serving.onnx.session import Session

CONVOLUTION = base64.b64decode(
    "CAg6TgoPCgF4CgF4EgF5IgRDb252EgFnWhsKAXgSFgoUCAESEAoCCAEKAggBCgIIAgoCCAJiGwoBeRIWChQIARIQCgIIAQ"
    "oCCAEKAggBCgIIAUIECgAQDQ=="
)
"""A minimal graph, y = x * x by convolution, because only a convolution loads cuDNN."""


def doctor(bundle: Path | None = None, require: tuple[Device, ...] = ()) -> None:
    """Open a session on every device and print the result; exit status 1 if a required one fails.

    Args:
        bundle: also run this bundle's golden pictures on every working device.
        require: devices that must work.
    """
    devices: tuple[Device, ...] = get_args(Device)
    preload(devices)
    for name, version in versions().items():
        print(f"{name:14} {version}")
    opened = None if bundle is None else Bundle.read(bundle)
    failed: list[str] = []
    for device in devices:
        problem = try_device(device) or (opened and try_bundle(opened, device))
        print(f"{device:14} {'works' if problem is None else 'does not work: ' + problem}")
        if problem is not None and device in require:
            failed.append(device)
    if failed:
        raise UserError(f"expected {', '.join(failed)} to work here; see above what is missing")


def versions() -> dict[str, str]:
    """Return versions by name, "not found" for missing libraries."""
    cuda = str(getattr(onnxruntime, "cuda_version", ""))
    return {
        "python": platform.python_version(),
        "onnxruntime": f"{onnxruntime.__version__}, built for CUDA {cuda or 'none'}",
        "driver": _library(
            DRIVER, lambda lib: format_cuda_version(read_int(lib.cuDriverGetVersion))
        ),
        "CUDA": _library(
            f"libcudart.so.{cuda.split('.')[0] or 12}",
            lambda lib: format_cuda_version(read_int(lib.cudaRuntimeGetVersion)),
        ),
        "cuDNN": _library(CUDNN, lambda lib: str(lib.cudnnGetVersion())),
        "TensorRT": str(tensorrt_version() or f"not found ({TENSORRT})"),
    }


def _library(name: str, version: Callable[[Any], str]) -> str:
    try:
        return version(ctypes.CDLL(name))
    except OSError:
        return f"not found ({name})"


def try_device(device: Device) -> str | None:
    """Run one convolution on a device; return None, or the problem."""
    if lacking := missing(device):
        return "; ".join(lacking)
    provider = PROVIDERS[device]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    try:
        session = onnxruntime.InferenceSession(CONVOLUTION, options, providers=[provider])
        x = np.array([[[[1, 2], [3, 4]]]], np.float32)
        right = session.run(None, {"x": x})[0].tolist() == [[[[30]]]]
    except Exception as error:  # onnxruntime's exceptions have no common base but this one
        return str(error)
    if provider not in (found := active_providers(session)):
        return f"onnxruntime used {found[0]} instead and logged why"
    return None if right else "it computes a wrong result"


def try_bundle(bundle: Bundle, device: Device) -> str | None:
    """Run a bundle's golden pictures on a device and print the time; return None or the problem."""
    golden = bundle.golden()
    try:
        session = Session(bundle, device)
        embeddings = session.encode(golden.images)[0]
        start = time.perf_counter()
        session.encode(golden.images)
        milliseconds = (time.perf_counter() - start) * 1e3
    except Exception as error:  # onnxruntime's exceptions have no common base but this one
        return str(error)
    error = float(np.abs(embeddings - golden.embeddings).max())
    print(
        f"{device:14} {len(golden.images)} golden pictures: {milliseconds:.1f} ms, largest "
        f"difference {error:.1e}, on {', '.join(session.providers)}"
    )
    return None


if __name__ == "__main__":
    run_program(lambda: tyro.cli(doctor))
