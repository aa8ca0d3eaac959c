"""Sessions and galleries of the tiny bundle, with a cache per test."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from adde.bundle import Bundle
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
