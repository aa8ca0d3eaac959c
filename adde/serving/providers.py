"""Devices by name, what onnxruntime is told of them, and why one cannot be had."""

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Mapping, Sequence
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

DRIVER = "libcuda.so.1"


def preload(devices: Sequence[Device]) -> None:
    """Loads the libraries that pip installed, which else only `import torch` would.

    onnxruntime prints what it misses, and standard output belongs to answers.
    """
    if set(devices) == {"cpu"}:
        return
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    if "tensorrt" in devices:
        # Its wheel loads libnvinfer on import; without the wheel the system's is looked for.
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def missing(device: Device) -> list[str]:
    """What keeps onnxruntime from this device, each with what to do; empty where nothing does."""
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
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        # "libcudnn.so.9: cannot open shared object file: No such file or directory"
        name = str(error).split(":")[0]
        if name != DRIVER:
            found.append(f"{name} is not found: {_install(device)}")
    return found + _driver()


def _install(device: Device) -> str:
    if device == "tensorrt":
        major = str(getattr(onnxruntime, "cuda_version", "") or "12").split(".")[0]
        return f"pip install 'tensorrt-cu{major}>=10,<11'"
    return "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def _driver() -> list[str]:
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return [
            f"{DRIVER} is not found: install the NVIDIA driver; in a container, run it "
            "with --gpus all"
        ]
    code = driver.cuInit(0)
    return [f"the NVIDIA driver finds no device (cuInit: {code}); see nvidia-smi"] if code else []
