"""What the servers of serve_ray.py and serve_litserve.py share: adde.serving on one bundle."""

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
"""Pictures at once, and the seconds that the first of them waits: serve_onnx/server.py's defaults,
which also waits for a fifth of what the last run took where that is more.
"""

INSIDE = 256
"""Requests at a time, likewise."""


@dataclass(frozen=True)
class Arguments:
    """Serves until SIGTERM."""

    bundle: Path
    """Folder of the bundle."""
    gallery: Path
    """Its gallery."""
    port: int
    """On 127.0.0.1."""


class Embedder:
    """Reads and answers what /v1/embed does, picture in base64."""

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
    """A server's `main`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run_program(lambda: serve(tyro.cli(Arguments)))
