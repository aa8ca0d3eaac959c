r"""A drawn edit beside a search: their time, and a server's memory with and without a decoder.

    python benchmarks/drawing.py --bundle bundles/drawing --plain bundles/quickstart \
        --shards data/wardrobe

Both bundles are of one run; the second has no decoder. Searches and drawings take turns.
"""

import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import tyro
from servers import adde

from adde.bundle import Bundle
from adde.errors import run_program
from adde.serving import Searcher
from adde.serving.gallery.build import build_gallery
from adde.serving.onnx.session import Session

ROUNDS = 100


def measure(bundle: Path, plain: Path, shards: Path) -> None:
    """Print the figures.

    Args:
        bundle: with a decoder.
        plain: without.
        shards: whose test split is the gallery.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = {path: (path, folder / str(number)) for number, path in enumerate((bundle, plain))}
        for path, (_, gallery) in pairs.items():
            build_gallery(Bundle.read(path), Session(Bundle.read(path)), shards, gallery, "test")
        _latency(Searcher(*pairs[bundle]))
        for path, pair in pairs.items():
            with adde(folder, pair) as server:
                root = server.url.removesuffix("/v1/embed")
                items = f"{root}/v1/items?count=1"
                urllib.request.urlopen(items).read()
                what = "without" if path == plain else "with"
                print(f"server's memory {what} decoder: {server.rss_mb():.0f} MB")


def _latency(searcher: Searcher) -> None:
    schema = searcher.schema
    item = searcher.gallery.browse("", {}, 1, 0, 0)[0].item_id
    picture = searcher.bundle.preprocess.load(searcher.draw(item=item).png())
    edits = {schema.names[0]: schema.attributes[0].values[0]}
    calls = {
        "search from a picture": lambda: searcher.search(picture, edits),
        "drawing from a picture": lambda: searcher.draw(picture, edits),
        "search from an item": lambda: searcher.search(item=item, edits=edits),
        "drawing from an item": lambda: searcher.draw(item=item, edits=edits),
        "PNG of a drawing": searcher.draw(item=item, edits=edits).png,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    for name, found in times.items():
        print(f"{name}: median {statistics.median(found):.2f} ms")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(measure))
