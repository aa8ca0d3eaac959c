"""What a server can be told; every field is a flag of serve_onnx/server.py."""

from dataclasses import dataclass

from adde.errors import UserError
from adde.preprocess import MAX_PIXELS
from adde.serving.onnx.cores import cores
from adde.serving.onnx.session import BUCKETS

MOST_DECODERS = 16
"""Unless more are asked for, as each has memory of its own."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of one server.

    Raises:
        UserError: a number is out of its range; names it.
    """

    max_bytes: int = 10_000_000
    """Of a request's body; more is refused before it is read. JSON takes 4/3 of the picture."""
    max_pixels: int = 25_000_000
    """Of a picture, from its header; more is refused before it is decoded."""
    decode_seconds: float = 2.0
    """Of CPU time; a picture that takes more to decode is given up, and its process ended."""
    decoders: int = min(MOST_DECODERS, cores())
    """Processes that decode."""
    threads: int = cores()
    """Of the CPU, for the encoder and for searches each."""
    max_batch: int = 32
    """Pictures embedded at once."""
    max_wait_ms: float = 2.0
    """How long a picture waits for others that are on their way; with none, not at all."""
    queue: int = 256
    """Requests inside at a time; one more gets 429 and Retry-After. A key takes no place that would
    leave fewer free than it has, where there are others."""
    connections: int = 4096
    """Open at a time; one more closes that which has kept the server waiting for longest."""
    deadline_seconds: float = 10.0
    """From the request's head to its answer; later it gets 504."""
    drain_seconds: float = 5.0
    """After SIGTERM /readyz says 503 for so long, while requests are still answered."""
    rate: float = 100.0
    """Requests a second that a key may make in the long run; 0: any number."""
    burst: int = 200
    """Requests that a key may make at once."""

    def __post_init__(self) -> None:
        whole = ("max_bytes", "decoders", "threads", "queue", "connections", "burst")
        ranges = {
            **dict.fromkeys(whole, (1, 2**40)),
            "max_pixels": (1, MAX_PIXELS),
            "max_batch": (1, BUCKETS[-1]),
            "max_wait_ms": (0, 1000),
            "decode_seconds": (0.01, 600),
            "deadline_seconds": (0.01, 600),
            "drain_seconds": (0, 600),
            "rate": (0, 1e9),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                found = getattr(self, name)
                flag = name.replace("_", "-")
                raise UserError(f"--{flag}: expected {low} to {high}, found {found}")
