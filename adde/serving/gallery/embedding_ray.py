"""Embed on Ray Data: on the cluster of RAY_ADDRESS, or on one started on this machine.

There is one actor per GPU, or per core for the CPU. All machines must see bundle and shards under
the same paths and have adde installed.
"""

import importlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from adde.bundle import Bundle
from adde.errors import UserError
from adde.serving.gallery import embedding
from adde.serving.gallery.base import Item
from adde.serving.gallery.embedding import Embed, Split, embed_here, shards_of
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex

PIECE = 8
"""Batches per task of an actor."""

ROUND = 4096
"""Tasks submitted at a time, which bounds Ray's bookkeeping."""


def on_ray(bundle: Bundle, devices: Sequence[Device], allow_fallback: bool = False) -> Embed:
    """Embed like `embed_here`, on many machines; items come in the same order.

    Raises:
        UserError: ray is not installed, the cluster has no GPU although one was requested, or an
            actor failed; gives the reason.
    """

    def embed(index: ShardIndex, split: Split, start: int) -> Iterator[list[Item]]:
        ray, data = _ray()
        total = sum(shard.samples for shard in shards_of(index, split))
        step = PIECE * embedding.BATCH
        pieces = [{"start": at, "stop": min(at + step, total)} for at in range(start, total, step)]
        if isinstance(index.root, Path):
            index = replace(index, root=index.root.resolve())
        made = (bundle.path.resolve(), bundle.hash, index, split)
        started = not ray.is_initialized()
        if started:
            ray.init(log_to_driver=False, include_dashboard=False)
        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        gpus = "cpu" not in devices[:1]
        actors = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        try:
            if not actors:
                raise UserError(f"--engine-embed ray: expected a GPU for {devices[0]}, found none")
            for at in range(0, len(pieces), ROUND):
                some = pieces[at : at + ROUND]
                done = data.from_items(some, override_num_blocks=len(some)).map(
                    _Embedder,
                    fn_constructor_args=(*made, tuple(devices), allow_fallback),
                    compute=data.ActorPoolStrategy(min_size=1, max_size=actors),
                    num_gpus=1 if gpus else 0,
                    num_cpus=0 if gpus else 1,
                )
                for row in done.iter_rows():
                    yield from pickle.loads(row["batches"])
        except ray.exceptions.RayError as error:
            cause: object = getattr(error, "cause", None) or error
            reason = str(cause).strip().splitlines()[-1]
            raise UserError(f"--engine-embed ray: an actor failed: {reason}") from error
        finally:
            if started:
                ray.shutdown()

    return embed


class _Embedder:
    """A Ray actor: a session that stays open between tasks."""

    def __init__(
        self,
        bundle: Path,
        digest: str,
        index: ShardIndex,
        split: Split,
        devices: Sequence[Device],
        allow_fallback: bool,
    ) -> None:
        self._bundle = Bundle.read(bundle)
        if self._bundle.hash != digest:
            raise UserError(f"{bundle}: expected bundle {digest}, found {self._bundle.hash}")
        # There is one actor per core, so each uses one thread.
        self._session = Session(self._bundle, devices, allow_fallback, threads=1)
        self._embed = partial(embed_here, self._bundle, self._session, index, split)

    def __call__(self, piece: dict[str, int]) -> dict[str, bytes]:
        return {"batches": pickle.dumps([*self._embed(piece["start"], piece["stop"])])}


def _ray() -> tuple[Any, Any]:
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.data")
    except ImportError:
        raise UserError("--engine-embed ray: expected ray; pip install 'adde[ray]'") from None
