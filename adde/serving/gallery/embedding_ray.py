"""Embed on Ray Data: on the cluster of RAY_ADDRESS, or on one started on this machine.

There is one actor per GPU, or per core for the CPU. All machines must see bundle and shards under
the same paths and have adde installed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from adde.bundle import Bundle
from adde.errors import UserError
from adde.serving.gallery import embedding
from adde.serving.gallery.base import Item, Split
from adde.serving.gallery.embedding import Embed, embed_here, shards_of
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.packing.ray_data import Row, map_jobs, on_row, ray_cluster

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
        if index.most_pictures > 1:
            raise UserError(
                f"--engine-embed ray: expected one picture per item, found up to "
                f"{index.most_pictures} in {index.root}; embed without it"
            )
        total = sum(shard.samples for shard in shards_of(index, split))
        step = PIECE * embedding.BATCH
        pieces = [(at, min(at + step, total)) for at in range(start, total, step)]
        if isinstance(index.root, Path):
            index = replace(index, root=index.root.resolve())
        made = (bundle.path.resolve(), bundle.hash, index, split, tuple(devices), allow_fallback)
        gpus = "cpu" not in devices[:1]
        with ray_cluster("--engine-embed ray") as ray:
            actors = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
            if not actors:
                raise UserError(f"--engine-embed ray: expected a GPU for {devices[0]}, found none")
            for batches in map_jobs(
                _Embedder,
                pieces,
                ROUND,
                fn_constructor_args=made,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
                num_gpus=int(gpus),
                num_cpus=int(not gpus),
            ):
                yield from batches

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

    def __call__(self, row: Row) -> Row:
        return on_row(lambda piece: [*self._embed(*piece)], row)
