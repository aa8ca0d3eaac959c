"""Sessions and galleries of the tiny bundle, with a cache per test."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from adde.bundle import GOLDEN, Bundle
from adde.scoring import Calibration
from adde.serving.gallery.base import Item
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.session import Session


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle, tmp_path_factory):
    """A bundle from before calibration existed: ranked by distance."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("uncalibrated") / "tiny")
    replace(Bundle.read(folder), calibration=None).write()
    return folder


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="session")
def calibrated(tiny_bundle, bundle, tmp_path_factory):
    """The tiny bundle with a calibration."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("calibrated") / "b")
    calibration = Calibration((1.0, 1.5, 0.7), (1.0, 0.5, 2.0), 0.01, 3.0)
    replace(bundle, path=folder, calibration=calibration).write()
    return Bundle.read(folder)


@pytest.fixture(scope="session")
def calibrated_gallery(calibrated, session, tiny_shards, tmp_path_factory):
    """Folder of the gallery of all 96 tiny items, with beliefs."""
    folder = tmp_path_factory.mktemp("galleries") / "calibrated"
    build_gallery(calibrated, session, tiny_shards, folder)
    return folder


@pytest.fixture(scope="session")
def session(bundle):
    return Session(bundle)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder during one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "adde"


@pytest.fixture(scope="session")
def tiny_gallery(bundle, session, tiny_shards, tmp_path_factory):
    """Folder of the gallery of all 96 tiny items; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("galleries") / "tiny"
    build_gallery(bundle, session, tiny_shards, folder)
    return folder


@pytest.fixture
def gallery(bundle, tiny_gallery):
    opened = open_gallery(tiny_gallery, bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def random_items():
    """Makes items of the tiny bundle's shapes: `random_items(5, seed=1, prefix="x")`."""

    def make(count, seed=0, prefix="item", **fields):
        draws = np.random.default_rng(seed)
        vectors = draws.normal(size=(count, 3, 6)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
        return [
            Item(
                f"{prefix}-{row}",
                labels=draws.integers(-1, [3, 2, 2]),
                predicted=draws.integers(0, [3, 2, 2]),
                vector=vectors[row],
                norm=float(np.float32(draws.uniform(1, 9))),
                fields={name: values[row] for name, values in fields.items()},
            )
            for row in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def decoder():
    import torch

    from adde.methods.decoder.config import DecoderConfig
    from adde.methods.decoder.model import PictureDecoder
    from adde.model import ModelSettings

    torch.manual_seed(0)
    config = DecoderConfig(style=4, width=4, shrink=2)
    made = PictureDecoder(config, ModelSettings(image_size=32, width=6), 3).eval()
    with torch.no_grad():
        made.painter.layers[-2].weight.mul_(8)  # pictures that differ
    return made


@pytest.fixture(scope="session")
def drawing(bundle, decoder, tmp_path_factory):
    """The tiny bundle with a decoder."""
    from adde.exporting.drawing import Drawer, with_drawing
    from adde.exporting.graphs import write_drawing_graphs

    folder = shutil.copytree(bundle.path, tmp_path_factory.mktemp("drawing") / "b")
    write_drawing_graphs(decoder, (3, 6), folder)
    details = {**bundle.details, "drawing": Drawer(decoder, {"run": "decoder"}).details()}
    made = replace(bundle, path=folder, details=details)
    with_drawing(bundle.golden(), decoder, Session(made)).write(folder / GOLDEN)
    made.write()
    return Bundle.read(folder)


@pytest.fixture(scope="session")
def drawing_gallery(drawing, tiny_shards, tmp_path_factory):
    """A gallery of this bundle."""
    folder = tmp_path_factory.mktemp("gallery") / "g"
    build_gallery(drawing, Session(drawing), tiny_shards, folder)
    return folder
