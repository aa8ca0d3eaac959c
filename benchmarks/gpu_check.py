"""What only a GPU can show, the figures that matter most first; `make gpu-check` runs it.

    make gpu-check OFFLINE=1               # installs nothing; PYTHON=... names the interpreter
    python benchmarks/gpu_check.py --rehearse    # without a GPU: all parts, small, on the CPU

Every part that ends adds a line to docs/gpu_check.jsonl (a rehearsal's to none): its name, how it
ended, seconds, figures. A part whose packages are not installed is skipped by name. The first three
take about five minutes.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from figures import publish

from adde.errors import UserError, run_program

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "gpu_check.jsonl"
NEEDED = ("torch", "triton", "timm", "accelerate", "pytest")
ALL = "gpu or not gpu"
TRAINING = ("pydantic", "tomli_w", "tyro", "safetensors", "simplejpeg", "wandb", "webdataset")
"""What train/main.py imports beyond that."""


@dataclass(frozen=True)
class Part:
    """One part: pytest on some files, or a function that returns figures."""

    name: str
    needs: tuple[str, ...]
    files: tuple[str, ...] = ()
    marks: str = "gpu"
    measure: Callable[[bool], dict[str, float]] | None = None


def mining(rehearse: bool) -> dict[str, float]:
    """Seconds of a step's triplet losses against the Gram products alone, at growing batches."""
    from mining import CONTENDERS, LARGE, seconds

    figures: dict[str, float] = {}
    for size in (64, 128) if rehearse else (2048, 4096, 8192, 16384, 32768):
        times = seconds(size, 3, [name for name in LARGE if name in CONTENDERS])
        for name, value in times.items():
            figures[f"seconds_{name}_b{size}"] = value
        figures[f"ratio_to_gram_b{size}"] = times["adde"] / times["gram"]
        print(f"batch {size}: {figures[f'ratio_to_gram_b{size}']:.2f} times the Gram products")
    return figures


def training_step(rehearse: bool) -> dict[str, float]:
    """Steps of both stages on pictures in memory, against the bare backbone's."""
    from memory_step import measure

    return measure(rehearse)


PARTS = (
    Part("kernels", (), ("tests/gpu/test_cuda.py", "tests/mining/test_kernels.py"), ALL),
    Part("mining", (), measure=mining),
    Part("training step", (), measure=training_step),
    Part("definition", ("hypothesis",), ("tests/mining",), "not gpu"),
    Part("runs", (*TRAINING, "onnxruntime"), ("tests/gpu/test_training_cuda.py",)),
    Part("session", ("onnxruntime", "onnx", "onnxscript"), ("tests/gpu/test_session_cuda.py",)),
    Part("decoding", ("torchcodec", "simplejpeg"), ("tests/loading/test_gpu_decode.py",)),
)


def main(rehearse: bool) -> None:
    if lacking := absent(NEEDED):
        raise UserError(f"gpu-check: expected {', '.join(NEEDED)}, found no {', '.join(lacking)}")
    able: list[Part] = []
    for part in PARTS:
        if lacking := absent(part.needs):
            print(f"gpu-check: {part.name}: skipped, not installed: {', '.join(lacking)}")
        else:
            able.append(part)
    # Before anything takes time: no part may fall at its imports.
    files = [file for part in able for file in part.files]
    if pytest("--collect-only", "-qq", "-m", ALL, *files):
        raise UserError("gpu-check: a test file cannot be imported; see above")
    if not torch.cuda.is_available() and not rehearse:
        raise UserError(
            "gpu-check: no CUDA device found; --rehearse runs all parts on the CPU, small"
        )
    failed = [part.name for part in able if not run(part, rehearse)]
    if failed:
        raise UserError(f"gpu-check: failed: {', '.join(failed)}")


def run(part: Part, rehearse: bool) -> bool:
    """Runs a part, whatever became of those before, and writes down how it ended."""
    print(f"gpu-check: {part.name}", flush=True)
    started, figures = time.perf_counter(), dict[str, Any]()
    if part.measure is None:
        # Sessions and nvJPEG have no CPU to rehearse on; runs start programs.
        rest = ["--collect-only"] if rehearse and part.marks == "gpu" else []
        outcome = "failed" if pytest("-m", part.marks, *rest, *part.files) else "passed"
    else:
        try:
            figures, outcome = part.measure(rehearse), "measured"
        except Exception as error:  # the others are still to be run
            outcome = f"failed: {type(error).__name__}: {error}"
    about = {"part": part.name, "outcome": outcome, "seconds": time.perf_counter() - started}
    packages = tuple(p for p in ("torch", "triton", "accelerate", "timm") if not absent((p,)))
    publish(about | figures, packages, None if rehearse else RESULTS)
    return not outcome.startswith("failed")


def pytest(*words: str) -> int:
    """The exit status of pytest, which must find the tests of the files that it is given."""
    with tempfile.TemporaryDirectory() as folder:  # the checkout may be read-only
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={folder}", *words]
        # Plugins that this interpreter happens to have are none of ours.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def absent(packages: tuple[str, ...]) -> list[str]:
    """Which of them cannot be imported here."""

    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in packages if not there(name)]


if __name__ == "__main__":
    run_program(lambda: main("--rehearse" in sys.argv[1:]))
