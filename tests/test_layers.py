"""Serving and packing run without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = ("torch", "torchvision", "timm", "accelerate")
# What `pip install adde[train,study]` adds, by the names they are imported under.
TRAIN_EXTRA = (
    *TORCH,
    "aiohttp",
    "dicebear",
    "dicebear_core",
    "dicebear_styles",
    "filelock",
    "fsspec",
    "lightgbm",
    "matplotlib",
    "onnx",
    "onnxscript",
    "pyarrow",
    "pydantic",
    "resvg_py",
    "safetensors",
    "scipy",
    "sklearn",
    "wandb",
    "webdataset",
)
LAYER_0 = (
    "schema",
    "preprocess",
    "metrics",
    "scoring",
    "bundle",
    "disentanglement",
    "errors",
    "files",
    "pages",
    "shards",
    "serving",
)

IMPORT_ALL = """
import importlib, runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
for name in MODULES:
    importlib.import_module(name)
for path in PROGRAMS:
    sys.path[0] = path.rpartition("/")[0]
    runpy.run_path(path, run_name="imported")
assert not BLOCKED & set(sys.modules), BLOCKED & set(sys.modules)
"""


def layer_0():
    """Names of all modules, from the files: importing a package to list it could import torch."""
    names = []
    for path in sorted((ROOT / "adde").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if len(parts) > 1 and parts[1] in LAYER_0:
            names.append(name)
    return names


def programs(*folders):
    return [str(path) for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def import_without(blocked, modules, paths=()):
    settings = f"BLOCKED = set({blocked!r})\nMODULES = {modules!r}\nPROGRAMS = {paths!r}\n"
    return subprocess.run(
        [sys.executable, "-c", settings + IMPORT_ALL], capture_output=True, text=True, cwd="/"
    )


def test_layer_0_is_all_there():
    names = layer_0()
    assert {f"adde.{name}" for name in LAYER_0} <= set(names)
    assert {"adde.shards.reader", "adde.shards.packing.writer", "adde.serving.search"} <= set(names)


def test_layer_0_never_imports_torch():
    result = import_without(TORCH, layer_0(), programs("shards", "serve_onnx"))
    assert result.returncode == 0, result.stderr


def test_the_base_install_serves():
    # The HTTP service is an extra of its own; its program says what to install.
    modules = [name for name in layer_0() if name.startswith("adde.serving.")]
    modules = [name for name in modules if not name.startswith("adde.serving.http.")]
    result = import_without(TRAIN_EXTRA, modules, programs("serve_onnx"))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["adde.mining", "adde.loading.loader"])
def test_the_block_blocks(module):
    result = import_without(TORCH, [module])
    assert result.returncode != 0
    assert "torch is blocked" in result.stderr
