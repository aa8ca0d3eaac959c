"""Prometheus metrics."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server, in a separate registry."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        ProcessCollector(registry=of)
        PlatformCollector(registry=of)
        self.requests = Histogram(
            "adde_request_seconds",
            "Seconds from a request's head to the end of its response.",
            ("method", "route", "status"),
            registry=of,
            buckets=SECONDS,
        )
        self.stages = Histogram(
            "adde_stage_seconds",
            "Seconds of a request's stages: read, decode, batch (wait and encode), search.",
            ("stage",),
            registry=of,
            buckets=SECONDS,
        )
        self.encode = Histogram(
            "adde_encode_seconds", "Seconds of the encoder per batch.", registry=of, buckets=SECONDS
        )
        self.batches = Histogram(
            "adde_batch_size",
            "Pictures per batch of the encoder.",
            registry=of,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.inside = Gauge("adde_requests_inside", "Admitted requests.", registry=of)
        self.waiting = Gauge("adde_queue_depth", "Pictures waiting for the encoder.", registry=of)
        self.refused = Counter(
            "adde_refused", "Requests rejected before any work, by reason.", ("why",), registry=of
        )
        self.swaps = Counter("adde_swaps", "Hot swaps, by outcome.", ("outcome",), registry=of)
        self.serving = Gauge(
            "adde_serving",
            "1 for the current bundle and the provider that it runs on.",
            ("bundle", "provider"),
            registry=of,
        )
        self.items = Gauge("adde_gallery_items", "Items of the gallery.", registry=of)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time the block as a stage of a request, even if it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self.registry)
