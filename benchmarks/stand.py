"""What the serving benchmarks serve: an untrained bundle, its gallery, pictures as a shop has.

Weights decide nothing about time or memory, so nothing is trained.
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
    """A folder of a few hundred items of the embedded wardrobe, packed unless it is there."""
    words = ["--catalogue", "wardrobe", "--items", str(ITEMS), "--out", str(folder)]
    program = [sys.executable, str(ROOT / "shards" / "build.py"), *words]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    return folder


def make_pair(folder: Path, shards: Path, **settings: Any) -> tuple[Path, Path]:
    """Folders of a fresh bundle, `settings` being of `ModelSettings`, and of its gallery."""
    # Not above: processes that decode import their program's modules anew, and need no torch.
    import torch

    from adde.exporting.export import export_bundle
    from adde.methods.adde.model import ADDE
    from adde.model import ModelSettings

    torch.manual_seed(0)
    index = ShardIndex.read(shards)
    model = ADDE(ModelSettings(**settings), index.schema).eval()
    with torch.no_grad():
        # Fresh weights see next to nothing; pictures should differ by more than rounding.
        model.memory.weight.normal_()
        for layer in (model.heads.first, model.heads.second, model.classifiers.linear):
            layer.weight.mul_(6)
    bundle = export_bundle(model, index, folder / "bundle", None, {"run": "benchmark"}, None)
    build_gallery(bundle, Session(bundle), shards, folder / "gallery")
    return bundle.path, folder / "gallery"


def make_pictures(count: int, side: int) -> list[bytes]:
    """JPEGs of side x side pixels: smooth ground, an object, and grain, as photographs have."""
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
    """A picture as the body of a request that every contender reads, and what more is asked."""
    return json.dumps({"image": base64.b64encode(picture).decode(), **(more or {})}).encode()
