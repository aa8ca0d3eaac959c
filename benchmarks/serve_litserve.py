"""A bundle behind LitServe as its documentation shows it, batching on; for serving.py.

python benchmarks/serve_litserve.py --bundle bundles/shop --gallery galleries/shop --port 8002

After https://lightning.ai/docs/litserve/features/batching.
"""

from typing import Any

import litserve as ls  # pyright: ignore[reportMissingImports]
from embedder import BATCH, WAIT, Arguments, Embedder, answer_of, run_server

from adde.preprocess import Picture
from adde.serving.search import Start


class Encoder(ls.LitAPI):
    """POST / as /v1/embed."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT, api_path="/")
        self._arguments = arguments

    def setup(self, device: str) -> None:
        self._embedder = Embedder(self._arguments)

    # LitServe takes an annotation here for the kind of body; without one it reads JSON.
    def decode_request(self, request, **_):
        return self._embedder.load(request)

    def batch(self, inputs: list[Picture]) -> list[Picture]:
        return inputs

    def predict(self, x: list[Picture], **_: Any) -> list[Start]:
        return self._embedder.embed(x)

    def unbatch(self, output: list[Start]) -> list[Start]:
        return output

    def encode_response(self, output: Start, **_: Any) -> dict[str, Any]:
        return answer_of(output)


def run(arguments: Arguments) -> None:
    server = ls.LitServer(Encoder(arguments), accelerator="cpu", healthcheck_path="/up")
    server.run(
        host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    run_server(run)
