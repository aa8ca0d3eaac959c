"""Devices by name, what onnxruntime is told of them, and why one cannot be had."""

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
"""Entry of a session's configuration for which `running` knows who was given what."""

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
"""Prints the first library that a device's provider does not find. In a process of its own, which
some versions of onnxruntime's providers end when they are loaded by another than onnxruntime.
"""


def preload(devices: Sequence[Device]) -> None:
    """Loads the libraries that pip installed, which else only `import torch` would.

    onnxruntime prints what it misses, and standard output belongs to answers.
    """
    if set(devices) == {"cpu"}:
        return
    if "tensorrt" in devices:
        # onnxruntime has no option for it: else TensorRT rounds a float32 graph to TF32's 10 bits,
        # which is not what its parity report vouches for. Read when the libraries are loaded.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    if "tensorrt" in devices:
        # Its wheel loads libnvinfer on import; without the wheel the system's is looked for.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def active_providers(session: Any) -> tuple[str, ...]:
    """The providers that were given nodes of a session's graph, first choice first.

    A provider that is registered may have taken nothing, which onnxruntime but logs. Before 1.24 it
    does not tell: then all that are registered.
    """
    registered: list[str] = session.get_providers()
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return tuple(registered)
    given = {part.ep_name for part in session.get_provider_graph_assignment_info()}
    return tuple(name for name in registered if name in given)


def missing(device: Device, precision: str = "fp32") -> list[str]:
    """What keeps onnxruntime from running graphs of a precision on this device, each with what to
    do; empty where nothing does.
    """
    if device == "cpu":
        return []
    folder = Path(onnxruntime.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{device}.so"
    if not library.exists():
        return [
            f"{library.name} is no part of onnxruntime {onnxruntime.__version__}: "
            "pip uninstall onnxruntime; pip install onnxruntime-gpu"
        ]
    found: list[str] = []
    if device == "tensorrt" and precision == "int8":
        found.append(
            "TensorRT reads no int8 numbers that have a zero point: export --precision fp16 for it"
        )
    shared = folder / "libonnxruntime_providers_shared.so"
    # cuDNN is opened by the first convolution only.
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
    """Of the CUDA that onnxruntime is made for."""
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
            f"the NVIDIA driver runs CUDA {format_cuda_version(newest)} and older, onnxruntime "
            f"{onnxruntime.__version__} is made for CUDA {wanted}: install a newer driver, or an "
            "onnxruntime-gpu made for an older CUDA"
        ]
    return []


def tensorrt_version() -> int:
    """10.13.2 as 101302; 0 where TensorRT is not found."""
    try:
        return ctypes.CDLL(TENSORRT).getInferLibVersion()
    except OSError:
        return 0


def read_int(function: Callable[[Any], int]) -> int:
    """The integer that a C function writes where its argument points."""
    value = ctypes.c_int()
    function(ctypes.byref(value))
    return value.value


def format_cuda_version(version: int) -> str:
    """CUDA's 13020 is 13.2; a driver says the newest CUDA that it can run."""
    return f"{version // 1000}.{version % 1000 // 10}"
