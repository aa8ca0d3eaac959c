"""The Triton kernels: under the interpreter without a GPU, on the device where there is one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mining_cases import batch

from adde.mining import mine, reference

MARGIN = 0.5


def loss_and_gradient(vectors, labels, impl):
    leaf = vectors.clone().requires_grad_()
    loss = mine(leaf, labels, margin=MARGIN, impl=impl).loss_sum.sum()
    loss.backward()
    return loss.detach().double(), leaf.grad.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("items", "width"), [(67, 45), (130, 340)])
def test_errs_no_more_than_pytorch_in_the_same_dtype(dtype, items, width, monkeypatch):
    vectors, labels = batch(2, items, width, 6, seed=items, dtype=dtype)
    exact = loss_and_gradient(vectors.double(), labels, "reference")
    found = loss_and_gradient(vectors, labels, "triton")
    with monkeypatch.context() as patch:
        patch.setattr(reference, "as_accumulated", lambda tensor: tensor)
        plain = loss_and_gradient(vectors, labels, "reference")
    for name, oracle, ours, theirs in zip(("loss", "gradient"), exact, found, plain):
        error, allowed = (ours - oracle).abs(), (theirs - oracle).abs().max()
        rounding = torch.finfo(torch.float32).eps * oracle.abs().max()
        worst = int(error.argmax())
        assert error.max() <= allowed + 4 * rounding, (
            f"{name}: element {worst} is {ours.flatten()[worst]}, exact {oracle.flatten()[worst]}"
        )


def test_is_deterministic():
    vectors, labels = batch(2, 40, 33, 3, seed=1, dtype=torch.float32)
    first, again = (loss_and_gradient(vectors, labels, "triton") for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


COMPILE = """
import json, pathlib, re, subprocess, sys, tempfile
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from adde.mining import kernels

FLOATS = {"row_norms", "column_norms", "to_positives"}
SIZES = {"num_rows", "num_columns", "width", "num_slots", "search_steps"}
cuobjdump = pathlib.Path(nvidia.__file__).parent / "bin" / "cuobjdump"
variants = [(kernels._positives_kernel, False), (kernels._negatives_kernel, False),
            (kernels._negatives_kernel, True)]
for kernel, hardest in variants:
    for config in kernels._CONFIGS[:1] if hardest else kernels._CONFIGS:
        dtypes = ("fp32", "bf16", "fp16") if config is kernels._CONFIGS[0] else ("fp32", "bf16")
        for dtype in dtypes:
            constants = {"HARDEST": hardest, "CHUNK": kernels.CHUNK, "BLOCK_K": kernels.BLOCK_K,
                         "INTERPRETED": False, **config.kwargs}
            signature, values, aligned = {}, {}, {}
            for place, name in enumerate(kernel.fn.arg_names):
                if name in constants:
                    signature[name], values[place,] = "constexpr", constants[name]
                elif name in SIZES:
                    signature[name] = "i32"
                    if name == "width":  # padded
                        aligned[place,] = [["tt.divisibility", 16]]
                else:
                    kind = "fp32" if name in FLOATS else "i64"
                    signature[name] = "*" + (dtype if name in ("rows", "columns") else kind)
                    aligned[place,] = [["tt.divisibility", 16]]
            source = ASTSource(kernel.fn, signature, values, aligned)
            options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(built.asm["cubin"])
                file.flush()
                usage = subprocess.run([cuobjdump, "-res-usage", file.name], check=True,
                                       capture_output=True, text=True).stdout
            print(json.dumps({
                "kernel": kernel.fn.__name__, "dtype": dtype,
                "stack": int(re.search(r"STACK:(\\d+)", usage)[1]),
                "shared": built.metadata.shared,
                "copies": sorted(set(re.findall(r"cp.async.c[ag].shared.global.*?, 0x(\\w+),",
                                                built.asm["ptx"]))),
                "tensor_cores": re.search(r"wgmma|mma\\.sync", built.asm["ptx"]) is not None,
            }))
"""


def run_without_interpreter(program):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )


def test_compiles_for_an_h100_without_having_one():
    done = run_without_interpreter(COMPILE)
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(built) == 17
    for kernel in built:
        assert kernel["shared"] <= 227 * 1024, kernel
        assert kernel["copies"] == ["10"], kernel  # 16 bytes each
        assert kernel["stack"] <= 64, kernel  # bytes a thread that did not fit into registers
        assert kernel["tensor_cores"] == (kernel["dtype"] != "fp32"), kernel


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
def test_without_a_gpu_the_error_says_what_to_do():
    done = run_without_interpreter(
        "import torch; from adde.mining import mine\n"
        "mine(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), margin=0.5, impl='triton')"
    )
    assert "triton needs embeddings on a CUDA device, found cpu; use tiled" in done.stderr
