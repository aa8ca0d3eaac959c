"""Devices by name: onnxruntime's providers, and diagnosis of unavailable ones."""

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnxruntime as untyped  # pyright: ignore[reportMissingTypeStubs]

onnxruntime: Any = untyped

Device = Literal["cpu", "cuda", "tensorrt"]
PROVIDERS: Mapping[Device, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

RECORD = "session.record_ep_graph_assignment_info"
"""Session option that makes `active_providers` work."""

DRIVER, CUDNN, TENSORRT = "libcuda.so.1", "libcudnn.so.9", "libnvinfer.so.10"

LOAD = """
import ctypes, sys
from adde.serving.onnx.providers import preload
device, *libraries = sys.argv[1:]
preload([device])
try:
    for library in libraries:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
except OSError as error:  # libcudnn.so.9: cannot open shared object file: No such file or directory
    print(str(error).split(":")[0])
"""
"""Prints the first library that a device's provider cannot load. It runs in a separate process,
because some providers abort when they are loaded by anything but onnxruntime.
"""


def preload(devices: Sequence[Device]) -> None:
    """Load the libraries installed by pip, which otherwise only `import torch` would load.

    onnxruntime prints missing libraries; standard output is reserved for answers.
    """
    if set(devices) == {"cpu"}:
        return
    if "tensorrt" in devices:
        # Without this, TensorRT rounds float32 graphs to TF32's 10 bits, which the parity report
        # does not cover. onnxruntime has no option for it; the variable is read when the libraries
        # are loaded.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    if "tensorrt" in devices:
        # TensorRT's wheel loads libnvinfer on import; without it the system's library is used.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def active_providers(session: Any) -> tuple[str, ...]:
    """Return the providers that run nodes of a session's graph, first choice first.

    A registered provider may run no node at all, which onnxruntime only logs. Before 1.24 it cannot
    tell; then all registered providers are returned.
    """
    registered: list[str] = session.get_providers()
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return tuple(registered)
    given = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    return tuple(name for name in registered if name in given)


def missing(device: Device, precision: str = "fp32") -> list[str]:
    """List the reasons, each with a remedy, why a graph of a precision cannot run on a device."""
    if device == "cpu":
        return []
    folder = Path(onnxruntime.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{device}.so"
    if not library.exists():
        return [
            f"{library.name} is not part of onnxruntime {onnxruntime.__version__}: "
            "pip uninstall onnxruntime; pip install onnxruntime-gpu"
        ]
    found: list[str] = []
    if device == "tensorrt" and precision == "int8":
        found.append(
            "TensorRT does not support int8 with zero points: use a bundle of --precision fp16"
        )
    shared = folder / "libonnxruntime_providers_shared.so"
    # The provider loads cuDNN only at the first convolution.
    command = [sys.executable, "-c", LOAD, device, shared, library, CUDNN]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if (name := done.stdout.strip()) and name != DRIVER:
        found.append(f"{name} is not found: {_install(name)}")
    return found + _driver()


def _install(library: str) -> str:
    if library.startswith(("libnvinfer", "libnvonnxparser")):
        return f"pip install 'tensorrt-cu{_cuda_major()}>=10,<11'"
    return "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def _cuda_major() -> int:
    """Major version of CUDA that onnxruntime is built for."""
    return int(str(getattr(onnxruntime, "cuda_version", "") or "12").split(".")[0])


def _driver() -> list[str]:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return [
            f"{DRIVER} is not found: install the NVIDIA driver; in a container, run it "
            "with --gpus all"
        ]
    if code := driver.cuInit(0):
        return [f"the NVIDIA driver finds no device (cuInit: {code}); see nvidia-smi"]
    newest, wanted = read_int(driver.cuDriverGetVersion), _cuda_major()
    if newest // 1000 < wanted:
        return [
            f"the NVIDIA driver supports CUDA up to {format_cuda_version(newest)}, onnxruntime "
            f"{onnxruntime.__version__} is built for CUDA {wanted}: install a newer driver, or an "
            "onnxruntime-gpu built for an older CUDA"
        ]
    return []


def tensorrt_version() -> int:
    """Return TensorRT's version, 10.13.2 as 101302; 0 if it is not found."""
    try:
        return ctypes.CDLL(TENSORRT).getInferLibVersion()
    except OSError:
        return 0


def read_int(function: Callable[[Any], int]) -> int:
    """Call a C function and return the integer it writes to its pointer argument."""
    value = ctypes.c_int()
    function(ctypes.byref(value))
    return value.value


def format_cuda_version(version: int) -> str:
    """Format CUDA's 13020 as 13.2."""
    return f"{version // 1000}.{version % 1000 // 10}"
