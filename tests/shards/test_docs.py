"""Run every command of docs/catalogues.md on tiny trees with the layouts that it describes."""

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import (
    write_asen,
    write_cars3d,
    write_celeba,
    write_deepfashion,
    write_dsprites,
    write_fashionai,
    write_polyvore,
    write_saved_dataset,
    write_shapes3d,
    write_smallnorb,
    write_support,
    write_zappos,
)

from adde.shards.index import ShardIndex

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "docs" / "catalogues.md").read_text().splitlines()
COMMANDS = [line.strip() for line in LINES if line.startswith("    python ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the commands name."""
    place = tmp_path_factory.mktemp("place")
    (place / "photos").mkdir()
    rows = ["image,colour,family"]
    for number in range(120):
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(noise).save(place / "photos" / f"{number}.png")
        rows.append(f"{number}.png,{('red', 'blue')[number % 2]},f{number // 3}")
    (place / "items.csv").write_text("\n".join(rows))
    labels = [[a, b] for a, b in itertools.product(range(3), range(2))] * 5
    queries = [(0, [-1, 1, 0, 0, 0], [1, 0])]
    write_support(place / "splits" / "Shopping100k", labels, labels[:6], (3, 2), queries)
    (place / "splits" / "Shopping100k" / "img").rename(place / "img")
    (place / "Shopping100k").mkdir()
    (place / "img").rename(place / "Shopping100k" / "img")
    parts = ("train", "train", "val", "test")
    fashion = [(f"img/{n}/a.jpg", 1 + n % 2, {n % 2: 1}, parts[n % 4]) for n in range(60)]
    write_deepfashion(place / "DeepFashion", fashion)
    write_celeba(place / "CelebA", [((-1) ** n, (-1) ** (n // 2), n % 3, n) for n in range(60)])
    write_shapes3d(place / "3dshapes.h5")
    kinds = ("Boots", "Shoes")
    write_zappos(place / "zappos", [(kinds[n % 2], "Buckle", "Men", "Flat") for n in range(60)])
    pictures = {"train": 20, "valid": 10, "test": 10}
    labels = [f"{n} 0 {n % 2}" for n in range(20)]
    write_asen(place / "FashionAI-asen", {"sleeve": ["Short", "Long"]}, pictures, labels, {})
    write_fashionai(place / "FashionAI", [("neck_labels", ("yn", "my")[n % 2]) for n in range(60)])
    outfits = {
        part: {f"{k}{n}": [f"{k}{n}a", f"{k}{n}b"] for n in range(8)}
        for k, part in enumerate(("train", "valid", "test"), 1)
    }
    ids = [item for found in outfits.values() for outfit in found.values() for item in outfit]
    categories = {item: (item[-1], "1", "one") for item in ids}
    write_polyvore(place / "polyvore_outfits", "disjoint", outfits, categories)
    write_dsprites(place / "dsprites.npz")
    write_cars3d(place / "cars")
    write_smallnorb(place / "norb")
    items = [(n, n % 2, ("red", "blue")[n // 2 % 2]) for n in range(80)]
    write_saved_dataset(place / "saved", {"train": items, "test": items[:30]})
    return place


def test_the_page_has_commands():
    assert len(COMMANDS) == 21


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow) if "--engine ray" in c else c for c in COMMANDS],
)
def test_command_of_the_page(command, place):
    if "--engine ray" in command:
        pytest.importorskip("ray", reason="ray is not installed: pip install 'adde[ray]'")
    _, program, *words = shlex.split(command)
    if program != "shards/build.py" and not (place / "data" / "shop").exists():
        pytest.skip("the command that builds data/shop was left out")
    words = [sys.executable, str(ROOT / program), *words]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if program == "shards/build.py":
        index = ShardIndex.read(place / words[words.index("--out") + 1])
        assert sum(shard.samples for shard in index.shards) > 30
    if "--out report.html" in command:
        assert "data:image/jpeg" in (place / "report.html").read_text()
