"""Encode splits with all ranks; the method computes metrics from the outputs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adde.distributed import RankRows, gather_objects, rank, world_size
from adde.errors import UserError
from adde.loading.batch import Batch
from adde.loading.loader import BatchStream
from adde.mining.distances import full_precision
from adde.schema import Labels, Vector
from adde.shards.batches import Batches, OnFault
from adde.shards.index import ShardIndex
from adde.shards.shares import StoredOrder

Represent = Callable[[Any, Tensor], dict[str, Tensor]]
"""Maps a model and a batch of pictures (B, S, S, 3) uint8 to outputs by name, a row per picture."""


@dataclass(frozen=True)
class EncodedSplit:
    """The outputs and labels of a split, in stored order."""

    outputs: dict[str, Vector]
    """(N, ...) by name, from `Method.represent`."""
    labels: Labels
    """(N, A) int64."""
    rows: Labels
    """(N,) int64 positions in the split; those of unreadable samples are missing."""
    items: Labels | None = None
    """(N,) int64 numbers, equal for pictures of one item; None if each item has one picture."""


class Evaluator:
    """Encodes splits, each rank its share, in batches that `workers` processes read.

    A sample that cannot be read raises an error; with `on_fault` `skip` it is printed and left out.
    `report_progress` is called after every batch.
    """

    def __init__(
        self,
        index: ShardIndex,
        batch_size: int,
        workers: int,
        device: torch.device,
        on_fault: OnFault = "raise",
        timeout: float = 0.0,
        report_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._report_progress = report_progress
        self.index, self._batch_size = index, batch_size
        self._workers, self.device = workers, device
        self._on_fault: OnFault = on_fault
        self._timeout = timeout

    @torch.no_grad()
    def encode(self, represent: Represent, model: Any, split: str) -> EncodedSplit:
        """Encode every picture of a split; return outputs and labels, on every rank.

        Raises:
            UserError: no picture of the split can be read.
        """
        found: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        items: list[Tensor] = []
        for batch, rows in self.batches(model, split):
            with full_precision(batch.images):
                found.append((represent(model, batch.images), batch.labels, rows))
            if batch.items is not None:
                items.append(batch.items.to(self.device))
        # A rank without items of a small split must gather with the others.
        mine = {n: (tuple(v.shape[1:]), v.dtype) for n, v in found[0][0].items()} if found else {}
        shapes = next((shapes for shapes in gather_objects(mine) if shapes), None)
        if shapes is None:
            raise UserError(
                f"{self.index.root}: expected pictures in the split {split!r}, found none that can "
                "be read; shards/verify.py lists the faults"
            )
        none = torch.zeros((0, len(self.index.schema.sizes)), dtype=torch.int64)
        none = none.to(self.device)
        empty = {n: torch.empty((0, *s), dtype=d).to(self.device) for n, (s, d) in shapes.items()}
        found.insert(0, (empty, none, none[:, 0]))
        ranks = RankRows.of(sum(len(labels) for _, labels, _ in found), self.device)

        def whole(parts: list[Tensor]) -> Any:
            return ranks.gather(torch.cat(parts)).cpu().numpy()

        outputs = {name: whole([part[name] for part, _, _ in found]) for name in shapes}
        labels, rows = [part[1] for part in found], [part[2] for part in found]
        several = self.index.most_pictures > 1
        numbers = whole([none[:, 0], *items]) if several else None
        return EncodedSplit(outputs, whole(labels), whole(rows), numbers)

    def watch(self, blocks: Iterable[Any]) -> Iterator[Any]:
        """Yield the blocks of a ranking, and report progress after each."""
        for block in blocks:
            yield block
            self._report_progress()

    def batches(self, model: Any, split: str) -> Iterator[tuple[Batch, Tensor]]:
        """Yield this rank's readable samples as batches, with their positions in the split."""
        samples = tuple(shard.samples for shard in self.index.split(split))
        places = StoredOrder(samples, self._batch_size, rank(), world_size())
        batches = Batches(self.index, split, model.preprocess, places, self._on_fault)
        stream = BatchStream(
            batches, range(len(places)), self._workers, self.device, self._timeout, rank()
        )
        # Switch to eval mode and back here, so that no caller can forget it.
        was_training = model.training
        model.eval()
        try:
            quiet = True if rank() else None
            first, _ = places.bounds
            for batch in tqdm(
                stream, f"encode {split}", len(places), leave=False, disable=quiet, unit="batch"
            ):
                for fault in batch.faults:
                    tqdm.write(f"rank {rank()}, encoding {split}: skipped {fault}")
                rows = torch.arange(first, first + len(batch.labels), device=self.device)
                first += len(rows)
                if batch.substituted_rows:
                    whole = torch.ones_like(rows, dtype=torch.bool)
                    whole[batch.substituted_rows] = False
                    batch, rows = batch.only(whole), rows[whole]
                yield batch, rows
                self._report_progress()
        finally:
            stream.close()
            model.train(was_training)
