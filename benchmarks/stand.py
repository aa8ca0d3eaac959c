"""Inputs of the serving benchmarks: an untrained bundle, its gallery, pictures like a shop's.

Training is unnecessary, because weights do not affect time or memory.
"""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adde.serving.gallery.build import build_gallery
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex

ROOT = Path(__file__).parents[1]
ITEMS = 400
"""Items of the gallery."""


def make_shards(folder: Path) -> Path:
    """Pack a few hundred items of the embedded wardrobe, unless that is done already."""
    words = ["--catalogue", "wardrobe", "--items", str(ITEMS), "--out", str(folder)]
    program = [sys.executable, str(ROOT / "shards" / "build.py"), *words]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return folder


def make_pair(folder: Path, shards: Path, **settings: Any) -> tuple[Path, Path]:
    """Make an untrained bundle with `ModelSettings(**settings)` and its gallery."""
    # Imported here because decoder processes re-import this module and do not need torch.
    import torch

    from adde.exporting.export import export_bundle
    from adde.methods.adde.model import ADDE
    from adde.model import ModelSettings

    torch.manual_seed(0)
    index = ShardIndex.read(shards)
    model = ADDE(ModelSettings(**settings), index.schema).eval()
    with torch.no_grad():
        # With initial weights, pictures would differ by little more than rounding.
        model.memory.weight.normal_()
        for layer in (model.heads.first, model.heads.second, model.classifiers.linear):
            layer.weight.mul_(6)
    bundle = export_bundle(model, index, folder / "bundle", None, {"run": "benchmark"}, None)
    build_gallery(bundle, Session(bundle), shards, folder / "gallery")
    return bundle.path, folder / "gallery"


def make_pictures(count: int, side: int) -> list[bytes]:
    """Make JPEGs of side x side pixels with smooth colours and grain, like photographs."""
    draws = np.random.default_rng(side)
    return [_picture(draws, side) for _ in range(count)]


def _picture(draws: np.random.Generator, side: int) -> bytes:
    coarse = draws.integers(60, 240, (6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + draws.normal(0, 5, (side, side, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(content, "jpeg", quality=85)
    return content.getvalue()


def body_of(picture: bytes, more: Mapping[str, Any] | None = None) -> bytes:
    """Encode a picture, and further fields, as a request body that every contender reads."""
    return json.dumps({"image": base64.b64encode(picture).decode(), **(more or {})}).encode()
