"""Code shared by the servers of serve_ray.py and serve_litserve.py: adde.serving on one bundle."""

import base64
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from adde.errors import run_program
from adde.preprocess import Picture
from adde.serving.search import Searcher, Start

BATCH, WAIT = 32, 0.002
"""Maximum batch, and seconds that its first picture waits: the defaults of serve_onnx/server.py,
which also waits for a fifth of the last run's duration if that is longer.
"""

INSIDE = 256
"""Concurrent requests, also the default of serve_onnx/server.py."""


@dataclass(frozen=True)
class Arguments:
    """Serve until SIGTERM."""

    bundle: Path
    """Folder of the bundle."""
    gallery: Path
    """Its gallery."""
    port: int
    """On 127.0.0.1."""


class Embedder:
    """Answers requests like /v1/embed, with a picture in base64."""

    def __init__(self, arguments: Arguments) -> None:
        self._searcher = Searcher(arguments.bundle, arguments.gallery)
        self._searcher.session.warm_up()

    def load(self, request: Any) -> Picture:
        return self._searcher.picture(base64.b64decode(request["image"]))

    def embed(self, pictures: Sequence[Picture]) -> list[Start]:
        return self._searcher.embed(pictures)


def answer_of(start: Start) -> dict[str, Any]:
    seen = {name: vars(value) for name, value in start.seen.items()}
    return {"embedding": start.embedding.tolist(), "seen": seen}


def run_server(serve: Callable[[Arguments], None]) -> None:
    """Run a server's `main`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run_program(lambda: serve(tyro.cli(Arguments)))
