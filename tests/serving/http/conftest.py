"""Servers of the tiny bundle: in a thread of the test, or as a process."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from adde.bundle import GOLDEN, OUTFIT, Bundle
from adde.serving import Searcher
from adde.serving.gallery.base import read_picture
from adde.serving.http.backend import BackendConfig
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.server import Server, listen
from adde.serving.http.service import Service
from adde.serving.http.settings import Settings
from adde.serving.onnx.session import Session

PROGRAM = Path(__file__).parents[3] / "serve_onnx" / "server.py"


class InThread:
    """A server in a thread: `url` and `service`."""

    def __init__(self, source, settings, decoders, keys=None, hosts=None, cards=None):
        opened = source.open()
        self.service = Service(source, opened, decoders, settings, keys, hosts, cards)
        self.server = Server(self.service)
        self._socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self.server.run, args=([self._socket],))
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def close(self):
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._socket.close()


@pytest.fixture(scope="session")
def decoders():
    """A decoder pool shared by servers without special limits, because processes start slowly."""
    usual = Settings()
    opened = Decoders(1, usual.decode_seconds, usual.max_pixels)
    yield opened
    opened.close()


@pytest.fixture
def serve(tiny_bundle, tiny_gallery, decoders):
    """Start servers: `serve(queue=3, ...)`."""
    with contextlib.ExitStack() as opened:

        def start(
            keys=None, hosts=None, gallery=tiny_gallery, cards=None, pictures=None, **changed
        ):
            settings, pool = Settings(**{"drain_seconds": 0, **changed}), decoders
            if "decode_seconds" in changed:
                pool = Decoders(1, settings.decode_seconds, settings.max_pixels)
                opened.callback(pool.close)
            source = BackendConfig(tiny_bundle, gallery, pictures=pictures)
            server = InThread(source, settings, pool, keys, hosts, cards)
            opened.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="session")
def server(tiny_bundle, tiny_gallery, decoders):
    """One server for all read-only tests."""
    started = InThread(
        BackendConfig(tiny_bundle, tiny_gallery), Settings(drain_seconds=0), decoders
    )
    yield started
    started.close()


@pytest.fixture(scope="session")
def with_head(calibrated, tmp_path_factory):
    """Give the calibrated bundle an outfit head whose tables are drawn: `with_head("shape")`."""

    def make(category):
        import torch

        from adde.exporting.export import with_outfits
        from adde.exporting.graphs import write_outfit_graph
        from adde.methods.outfits.model import Bilinear

        folder = shutil.copytree(calibrated.path, tmp_path_factory.mktemp("worn") / "b")
        head = Bilinear(calibrated.schema, calibrated.schema.attribute_index(category))
        head.begin(torch.randn(head.table.shape, generator=torch.Generator().manual_seed(1)))
        write_outfit_graph(head, folder)
        details = {**calibrated.details, "outfits": {"category": category, "source": {}}}
        bundle = replace(calibrated, path=folder, details=details)
        with_outfits(calibrated.golden(), head, Session(bundle)).write(folder / GOLDEN)
        bundle.write()
        assert (folder / OUTFIT).exists()
        return Bundle.read(folder)

    return make


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=20) as opened:
        yield opened


@pytest.fixture
def searcher(bundle, session, gallery):
    """The library's searcher, which answers are compared with."""
    return Searcher(bundle, gallery, session=session)


@pytest.fixture
def picture_of(searcher):
    """An item's picture as packed, PNG."""
    return lambda item_id: read_picture(searcher.gallery.header, searcher.gallery.get(item_id))


@pytest.fixture
def slow(monkeypatch):
    """Set how many seconds longer the encoder takes per batch, in servers of this process."""
    taken, embed = [0.0], Searcher.embed

    def slowly(self, pictures):
        time.sleep(taken[0])
        return embed(self, pictures)

    monkeypatch.setattr(Searcher, "embed", slowly)

    def make(seconds):
        taken[0] = seconds

    return make


class Process:
    """serve_onnx/server.py as a process; `url` once it is ready."""

    def __init__(self, *arguments, environment=None):
        self.lines = []
        command = [sys.executable, "-W", "error", str(PROGRAM), "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = self.wait_for("ready").get("address")

    def _read(self):
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"message": line})

    def wait_for(self, start, count=1, seconds=60):
        """Return the count-th log line whose message starts so."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [line for line in self.lines if line["message"].startswith(start)]
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no line {start!r} in {self.lines}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()


@pytest.fixture
def process(tiny_bundle, tiny_gallery):
    """Start server processes: `process("--queue", 3, ...)`."""
    with contextlib.ExitStack() as opened:

        def start(*arguments, bundle=tiny_bundle, gallery=tiny_gallery, environment=None):
            arguments = ("--bundle", bundle, "--gallery", gallery, *arguments)
            started = Process(*arguments, environment=environment)
            opened.callback(started.close)
            return started

        yield start


@pytest.fixture
def drawn():
    """A picture without symmetry: 64 x 48, smooth."""
    image = Image.linear_gradient("L").resize((64, 48))
    return Image.merge("RGB", (image, image.rotate(90).resize((64, 48)), image.rotate(180)))
