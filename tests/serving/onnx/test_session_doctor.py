"""serve_onnx/doctor.py shows what works, and fails if a required device does not."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[3] / "serve_onnx" / "doctor.py"


def doctor(*arguments):
    command = [sys.executable, "-W", "error", PROGRAM, *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False
    )


def test_the_cpu_works_and_a_missing_device_does_not(tiny_bundle):
    done = doctor("--bundle", tiny_bundle, "--require", "cuda")
    assert done.returncode == 1
    assert done.stderr.endswith("error: expected cuda to work here; see above what is missing\n")
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["cpu"].endswith(" works")
    assert "cuda           does not work: lib" in lines["cuda"] or "driver" in lines["cuda"]
    assert {"python", "onnxruntime", "driver", "CUDA", "cuDNN", "TensorRT"} <= set(lines)
    assert "golden pictures" in done.stdout
    assert doctor("--require", "cpu").returncode == 0
