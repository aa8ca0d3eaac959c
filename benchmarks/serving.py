"""The server against bare onnxruntime, and against Ray Serve and LitServe on the same bundle.

    python benchmarks/serving.py --json docs/serving.json
    python benchmarks/serving.py --memory-requests 100000     # minutes: all of them

serve_onnx/server.py runs as a process of its own, as everything it is held against; contenders take
turns in one run and are compared by medians. Clients, decoders and the model share this machine's
cores, so the server's throughput is also given against bare onnxruntime with the server's decoders
before it, and with one core for the encoder and another for all else, as where the encoder is on a
GPU. Pictures are JPEGs of 800 x 800 pixels; the bundle is an untrained ResNet-18 at 224 px with the
paper's widths.
"""

import json as jsons
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from embedder import BATCH
from load import Load, ask, cpu_seconds
from servers import Running, adde, contender
from stand import body_of, make_pair, make_pictures, make_shards

from adde.bundle import Bundle
from adde.errors import UserError, run_program
from adde.preprocess import Picture, Preprocess
from adde.serving import Searcher
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.settings import Settings
from adde.serving.onnx.session import STREAMS, Session

CLIENTS = (1, 8, 32)
ROUNDS, COUNT = 3, 256
"""Turns of which the figures are medians, and requests in each."""

SIDE, SMALL_SIDE, TINY_SIDE = 800, 256, 96
"""Pixels: what a shop's clients send, what a page that resizes first sends, and what costs little
where requests are to be many.
"""

PICTURES = 64
"""Different ones."""

PARTS, WARM_UP = 20, 5
"""Parts of the requests during which memory is measured, and warm-up parts before them, in which
allocators still grow to the peak use.
"""


class Bare:
    """onnxruntime's session.run on one full batch that lies in memory."""

    def __init__(
        self, bundle: Bundle, pictures: Sequence[bytes], threads: int | None = None
    ) -> None:
        session = Session(bundle, threads=threads)
        self._run = session._encoder._session.run
        loaded = [bundle.preprocess.load(picture) for picture in pictures[:BATCH]]
        self._inputs = {"images": np.stack(loaded)}
        self.per_second(2)

    def run(self, pictures: Sequence[Picture]) -> None:
        """One batch."""
        self._run(["embeddings", "logits"], {"images": np.stack(pictures)})

    def per_second(self, runs: int) -> float:
        """Pictures a second."""
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self._run(["embeddings", "logits"], self._inputs)
            times.append(time.perf_counter() - start)
        return BATCH / statistics.median(times)


class BareDecoding:
    """The same from encoded pictures, with the server's decoders; no HTTP, nobody to wait for.

    While a batch is in the encoder the next one is decoded, and no more: with as many clients as
    a batch is large the server has no more at hand either.
    """

    def __init__(
        self, bare: Bare, decoders: Decoders, preprocess: Preprocess, pictures: list[bytes]
    ) -> None:
        self._bare, self._decoders, self._preprocess = bare, decoders, preprocess
        self._pictures = [pictures[at % len(pictures)] for at in range(BATCH)]

    def _decoding(self) -> list[Future[Picture]]:
        submit, load = self._decoders.threads.submit, self._decoders.load
        return [submit(load, picture, self._preprocess) for picture in self._pictures]

    def per_second(self, batches: int) -> float:
        """Pictures a second, without the first batch, before which nothing is decoded."""
        decoding = self._decoding()
        start = 0.0
        for batch in range(batches + 1):
            loaded = [each.result() for each in decoding]
            if batch < batches:
                decoding = self._decoding()
            self._bare.run(loaded)
            if batch == 0:
                start = time.perf_counter()
        return batches * BATCH / (time.perf_counter() - start)


def require_same_answers(load: Load, alone: Load, what: str) -> None:
    """Answers under load must be those one by one, to the last bit."""
    different = [body for body, seen in load.answers.items() if seen != alone.answers[body]]
    if different:
        raise UserError(f"{what}: expected the answers one by one, found {len(different)} others")


def require_same_embeddings(url: str, bodies: Sequence[bytes], alone: Load) -> None:
    """A contender that answers something else proves nothing."""
    for body, answers in ask(url, bodies, 8, len(bodies)).answers.items():
        expected = jsons.loads(next(iter(alone.answers[body])))
        for found in map(jsons.loads, answers):
            ours, theirs = (np.float32(each["embedding"]) for each in (expected, found))
            same = np.array_equal(ours, theirs)
            if not same or found["seen"] != expected["seen"]:
                raise UserError(f"{url}: expected this project's answer, found another")


def throughput(
    server: Running,
    bare: Bare,
    decoding: BareDecoding,
    bodies: list[bytes],
    smaller: list[bytes],
) -> dict[str, float]:
    """The server against bare onnxruntime, without and with decoding, in turns: medians of rounds.

    Also the shares of this machine's CPU that others than the encoder's process took.
    """
    groups, cores = server.groups(), psutil.cpu_count() or 1
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        alone = bare.per_second(max(3, COUNT // BATCH // 2))
        start = time.perf_counter()
        with cpu_seconds(groups) as taken:
            ours = ask(server.url, bodies, BATCH, COUNT).per_second
        wall = time.perf_counter() - start
        decoded = decoding.per_second(COUNT // BATCH)
        small = ask(server.url, smaller, BATCH, COUNT).per_second
        shares = {f"cpu_share_{name}": seconds / (wall * cores) for name, seconds in taken.items()}
        rounds.append(
            {
                "server_vs_bare": ours / alone,
                "server_vs_bare_decoding": ours / decoded,
                f"server_vs_bare_{SMALL_SIDE}px": small / alone,
                "pictures_per_second": ours,
                "pictures_per_second_bare": alone,
                "pictures_per_second_bare_decoding": decoded,
                **shares,
            }
        )
    return {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}


def on_own_core(folder: Path, pair: tuple[Path, Path], pictures: list[bytes]) -> float:
    """Median ratio to bare onnxruntime where the encoder, in both, has one core to itself and all
    else, clients too, has another: what is missing is then what the server keeps it waiting.
    """
    usable = os.sched_getaffinity(0)
    encoders, others, *_ = sorted(usable)
    bodies = [body_of(picture) for picture in pictures]
    bare = Bare(Bundle.read(pair[0]), pictures, threads=1)
    ratios = []
    with adde(folder, pair, "--threads", "1", "--decoders", "1") as server:
        before = {thread.id: thread.user_time for thread in server.process.threads()}
        ask(server.url, bodies, BATCH, 3 * BATCH)
        # Its encoder's lanes are the threads that this kept busy.
        busy = {thread.id: thread.user_time for thread in server.process.threads()}
        lanes = sorted(busy, key=lambda each: before.get(each, 0.0) - busy[each])[:STREAMS]
        for process in server.processes():
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {encoders if thread.id in lanes else others})
        try:
            for _ in range(ROUNDS):
                os.sched_setaffinity(0, {encoders})
                alone = bare.per_second(max(3, COUNT // BATCH // 2))
                os.sched_setaffinity(0, {others})
                ratios.append(ask(server.url, bodies, BATCH, COUNT).per_second / alone)
        finally:
            os.sched_setaffinity(0, usable)
    return statistics.median(ratios)


def against(server: Running, other: Running, bodies: list[bytes]) -> Any:
    """Median ratio of throughputs in turn, and the other's median."""
    pairs = [
        [ask(each.url, bodies, BATCH, COUNT).per_second for each in (server, other)]
        for _ in range(ROUNDS)
    ]
    return statistics.median(a / b for a, b in pairs), statistics.median(b for _, b in pairs)


def latencies(url: str, bodies: list[bytes], alone: Load) -> dict[str, float]:
    """p50 and p99 in ms at every number of clients."""
    figures: dict[str, float] = {"latency_requests": COUNT}
    for clients in CLIENTS:
        load = ask(url, bodies, clients, COUNT)
        require_same_answers(load, alone, f"{clients} clients")
        figures |= {f"p{p}_ms_c{clients}": load.ms(p) for p in (50, 99)}
    return figures


def cpu_ms(server: Running, bodies: list[bytes], searches: list[bytes]) -> dict[str, float]:
    """CPU milliseconds of the server's own process for a request, with an encoder next to free:
    what bounds the requests a second of one process, as Python runs one thread at a time.
    """
    figures: dict[str, float] = {}
    for name, asked in (("embed", bodies), ("search", searches)):
        url = server.url.replace("/embed", f"/{name}")
        ask(url, asked, 8, len(asked))
        with cpu_seconds(server.groups()) as seconds:
            ask(url, asked, 8, 10 * COUNT)
        figures[f"server_cpu_ms_{name}"] = 1000 * seconds["server"] / (10 * COUNT)
    return figures


def memory(server: Running, bodies: list[bytes], count: int) -> dict[str, float]:
    """MB that the server grows by in 100,000 requests, a third each of embeddings of pictures,
    searches by picture and searches by item: the slope once it has warmed up.
    """
    base = server.url.removesuffix("/v1/embed")
    with urllib.request.urlopen(f"{base}/v1/items?count=64") as response:
        found = jsons.load(response)["items"]
    items = [jsons.dumps({"item": item["item_id"]}).encode() for item in found]
    sizes, done = [], []
    for part in range(PARTS + WARM_UP):
        for path, asked in (("embed", bodies), ("search", bodies), ("search", items)):
            ask(f"{base}/v1/{path}", asked, BATCH, count // PARTS // 3)
        if part >= WARM_UP - 1:
            sizes.append(server.rss_mb())
            done.append((part + 1) * (count // PARTS // 3) * 3)
    slope = np.polyfit(done, sizes, 1)[0]
    figures = {"rss_growth_mb_100k": float(slope) * 100_000, "rss_requests": done[-1]}
    return figures | {"rss_mb_start": sizes[0], "rss_mb_end": sizes[-1]}


def require_same_as_library(
    bundle: Bundle, gallery: Path, pictures: list[bytes], load: Load
) -> None:
    """The server's embeddings must be the library's, to the last bit."""
    searcher = Searcher(bundle, gallery)
    for number, picture in enumerate(pictures):
        wanted = searcher.embed([searcher.picture(picture)])[0].embedding
        found = jsons.loads(next(iter(load.answers[number])))["embedding"]
        if not np.array_equal(np.asarray(found, np.float32), wanted):
            raise UserError("expected the server's embedding to be the library's")


def measure(folder: Path, memory_requests: int, given: Any) -> dict[str, float]:
    """All figures."""
    shards = make_shards(folder / "shards")
    pair = given or make_pair(folder / "large", shards, image_size=224)
    small = {"backbone": "test_resnet", "image_size": 32, "hidden": 64}
    small_pair = make_pair(folder / "small", shards, **small)
    pictures = make_pictures(PICTURES, SIDE)
    bodies = [body_of(picture) for picture in pictures]
    smaller = [body_of(picture) for picture in make_pictures(PICTURES, SMALL_SIDE)]
    bundle = Bundle.read(pair[0])
    bare, usual = Bare(bundle, pictures), Settings()
    pool = Decoders(usual.decoders, usual.decode_seconds, usual.max_pixels)
    with closing(pool), adde(folder, pair) as server:
        alone = ask(server.url, bodies, 1, PICTURES)
        require_same_as_library(bundle, pair[1], pictures, alone)
        decoding = BareDecoding(bare, pool, bundle.preprocess, pictures)
        figures = throughput(server, bare, decoding, bodies, smaller)
        figures |= latencies(server.url, bodies, alone)
        for name, key in (("ray", "ray_serve"), ("litserve", "litserve")):
            with contender(folder, pair, name) as other:
                require_same_embeddings(other.url, bodies, alone)
                ratio, theirs = against(server, other, bodies)
            figures |= {f"server_vs_{key}": ratio, f"pictures_per_second_{key}": theirs}
    if len(os.sched_getaffinity(0)) > 1:
        figures["server_vs_bare_own_core"] = on_own_core(folder, pair, pictures)
    tiny = make_pictures(PICTURES, TINY_SIDE)
    bodies = [body_of(picture) for picture in tiny]
    searches = [body_of(picture, {"edits": {"top_colour": "red"}, "k": 10}) for picture in tiny]
    with adde(folder, small_pair) as server:
        figures |= cpu_ms(server, bodies, searches)
        return figures | memory(server, bodies, memory_requests)


def benchmark(
    bundle: Path | None = None,
    gallery: Path | None = None,
    memory_requests: int = 10_000,
    json: Path | None = None,
) -> None:
    """Throughput, latency and memory of the server.

    Args:
        bundle: folder of a bundle to serve; default: an untrained one made on the spot.
        gallery: its gallery.
        memory_requests: requests that memory's growth is measured over, of a small bundle; the
            figure is per 100,000.
        json: file of the figures.
    """
    if (bundle is None) != (gallery is None):
        raise UserError("expected --bundle and --gallery, found one of them")
    with tempfile.TemporaryDirectory(prefix="adde-serving-") as folder:
        figures = measure(Path(folder), memory_requests, bundle and (bundle, gallery))
    from figures import publish  # not above, as it needs torch; see make_pair

    packages = ("onnxruntime-gpu", "fastapi", "uvicorn", "ray", "litserve")
    publish(figures, packages, json)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(benchmark))
