"""Server settings; every field is a flag of serve_onnx/server.py."""

from dataclasses import dataclass

from adde.errors import UserError
from adde.preprocess import MAX_PIXELS
from adde.serving.onnx.cores import cores
from adde.serving.onnx.session import BUCKETS

MOST_DECODERS = 16
"""Maximum decoders by default, as each process needs memory."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of one server.

    Raises:
        UserError: a number is out of range; names it.
    """

    max_bytes: int = 10_000_000
    """Maximum size of a request body, rejected before it is read. JSON needs 4/3 of the picture's
    size.
    """
    max_pixels: int = 25_000_000
    """Maximum pixels of a picture according to its header, rejected before decoding."""
    decode_seconds: float = 2.0
    """Maximum CPU seconds to decode a picture; then its decoding process is killed."""
    decoders: int = min(MOST_DECODERS, cores())
    """Decoding processes."""
    threads: int = cores()
    """CPU threads of the encoder, and of searches."""
    max_batch: int = 32
    """Maximum pictures per batch."""
    max_wait_ms: float = 2.0
    """Maximum time a picture waits for other pending pictures; if none is pending, it does not
    wait.
    """
    queue: int = 256
    """Admitted requests at a time; further ones get 429 and Retry-After. With several keys, none
    may hold more slots than it leaves free.
    """
    connections: int = 4096
    """Open connections; a further one closes the one that has waited longest for its client."""
    deadline_seconds: float = 10.0
    """Seconds from a request's head to its response; then 504."""
    drain_seconds: float = 5.0
    """Seconds after SIGTERM in which /readyz returns 503 while requests are still answered."""
    rate: float = 100.0
    """Sustained requests per second per key; 0: unlimited."""
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
