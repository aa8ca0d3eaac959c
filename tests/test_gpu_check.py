"""`make gpu-check OFFLINE=1` with the packages of a bare GPU image, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# What torch, triton, timm, accelerate and pytest do not bring along.
ABSENT = """
import importlib.machinery
ABSENT = {
    "aiohttp", "h5py", "hypothesis", "matplotlib", "onnx", "onnxruntime",
    "onnxscript", "pyarrow", "pydantic", "simplejpeg", "tomli_w", "torchcodec", "tyro", "wandb",
    "webdataset", "xdist",
}
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in ABSENT else find(name, *rest)
)
"""


def gpu_check(folder, *words, **environment):
    (folder / "sitecustomize.py").write_text(ABSENT)
    return subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_offline_it_collects_and_comes_to_the_first_call_of_cuda(tmp_path):
    done = gpu_check(tmp_path, "make", "gpu-check", "OFFLINE=1", f"PYTHON={sys.executable}")
    assert done.returncode
    assert "error: gpu-check: no CUDA device found" in done.stdout
    assert "tests/gpu/test_cuda.py: " in done.stdout
    assert "gpu-check: runs: skipped, not installed: pydantic, tomli_w, tyro" in done.stdout
    assert "gpu-check: definition: skipped, not installed: hypothesis" in done.stdout
    assert "pip" not in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted")
def test_every_part_ends_in_a_rehearsal(tmp_path):
    """Only parts that a bare image can run; each reports its outcome."""
    words = (sys.executable, "benchmarks/gpu_check.py", "--rehearse")
    done = gpu_check(tmp_path, *words, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stdout
    for part in ("kernels", "mining", "training step"):
        assert f"gpu-check: {part}\n" in done.stdout
    assert "ratio_to_gram_b128" in done.stdout
    assert "adde_vs_bare_a3_fp32" in done.stdout
