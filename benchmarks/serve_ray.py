"""A bundle behind Ray Serve as its documentation shows it, batching on; for serving.py.

python benchmarks/serve_ray.py --bundle bundles/shop --gallery galleries/shop --port 8001

After https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html.
"""

import os
import signal
import sys
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from embedder import BATCH, INSIDE, WAIT, Arguments, Embedder, answer_of, run_server
from ray import serve  # pyright: ignore[reportMissingImports]
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=INSIDE)
class Encoder:
    """GET answers once it is up."""

    def __init__(self, arguments: Arguments) -> None:
        self._embedder = Embedder(arguments)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT)
    async def embed(self, requests: list[Any]) -> list[Any]:
        pictures = [self._embedder.load(request) for request in requests]
        return [answer_of(start) for start in self._embedder.embed(pictures)]

    async def __call__(self, request: Request) -> Any:
        if request.method == "GET":
            return {}
        return await self.embed(await request.json())


def run(arguments: Arguments) -> None:
    # Workers find embedder.py, and the `adde` that this process has.
    path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    ray.init(include_dashboard=False, runtime_env={"env_vars": path}, object_store_memory=100 << 20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
        serve.run(Encoder.bind(arguments))  # pyright: ignore[reportAttributeAccessIssue]
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    run_server(run)
