"""Checks and measurements that need a GPU, most important first; `make gpu-check` runs them.

    make gpu-check OFFLINE=1               # installs nothing; PYTHON=... names the interpreter
    python benchmarks/gpu_check.py --rehearse    # without a GPU: all parts, small, on the CPU

Every finished part appends a line to docs/gpu_check.jsonl (except in a rehearsal): name, outcome,
seconds, figures. Parts whose packages are not installed are skipped with a message. The first three
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
"""Further imports of train/main.py."""


@dataclass(frozen=True)
class Part:
    """One part: pytest on some files, or a function that returns figures."""

    name: str
    needs: tuple[str, ...]
    files: tuple[str, ...] = ()
    marks: str = "gpu"
    measure: Callable[[bool], dict[str, float]] | None = None


def mining(rehearse: bool) -> dict[str, float]:
    """Compare the time of a step's triplet losses with the Gram products alone, by batch size."""
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
    """Compare steps of both stages on in-memory pictures with the bare backbone's."""
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
    # Fail early if a test file cannot be imported.
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
    """Run a part and record its outcome; return whether it succeeded."""
    print(f"gpu-check: {part.name}", flush=True)
    started, figures = time.perf_counter(), dict[str, Any]()
    if part.measure is None:
        # Sessions and nvJPEG cannot be rehearsed on a CPU.
        rest = ["--collect-only"] if rehearse and part.marks == "gpu" else []
        outcome = "failed" if pytest("-m", part.marks, *rest, *part.files) else "passed"
    else:
        try:
            figures, outcome = part.measure(rehearse), "measured"
        except Exception as error:  # run the other parts anyway
            outcome = f"failed: {type(error).__name__}: {error}"
    about = {"part": part.name, "outcome": outcome, "seconds": time.perf_counter() - started}
    packages = tuple(p for p in ("torch", "triton", "accelerate", "timm") if not absent((p,)))
    publish(about | figures, packages, None if rehearse else RESULTS)
    return not outcome.startswith("failed")


def pytest(*words: str) -> int:
    """Run pytest and return its exit status."""
    with tempfile.TemporaryDirectory() as folder:  # the checkout may be read-only
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={folder}", *words]
        # Ignore unrelated plugins of this interpreter.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def absent(packages: tuple[str, ...]) -> list[str]:
    """Return the packages that cannot be imported."""

    def there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in packages if not there(name)]


if __name__ == "__main__":
    run_program(lambda: main("--rehearse" in sys.argv[1:]))
