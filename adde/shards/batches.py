"""Batches read from shards and decoded, whoever asks for them."""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adde.errors import UserError
from adde.preprocess import Fit, Picture, Preprocess
from adde.schema import UNKNOWN, Labels
from adde.shards.index import ShardIndex
from adde.shards.order import Places
from adde.shards.reader import Sample, ShardReader
from adde.shards.remote.sources import Remote

OnFault = Literal["raise", "skip"]

Load = Callable[[Preprocess, bytes, str, Picture], None]
"""Makes a picture of a file's content and its name for messages, in (S, S, 3) uint8."""


def load_exactly(preprocess: Preprocess, source: bytes, name: str, into: Picture) -> None:
    """The picture that is measured and served."""
    into[:] = preprocess.load(source, name)


def load_nothing(preprocess: Preprocess, source: bytes, name: str, into: Picture) -> None:
    """No picture, for who needs only what comes with it."""
    into[:] = 0


@dataclass(frozen=True)
class Companions:
    """What comes with the pictures of a batch of b items: labels (b, A) int64, and their ids."""

    labels: Labels
    item_ids: list[str]
    faults: list[str]
    """What could not be read, each with shard, position and reason."""
    stood_in: list[int]
    """Rows of the items that could not be read; others of the batch stand in their places."""
    encoded: dict[int, bytes]
    """Rows whose pictures are still to be decoded, with their files."""


class Batches:
    """Batch number i holds the samples at `places(i)`; reads and decodes when asked.

    Args:
        index: of the shards.
        split: whose samples.
        preprocess: how the network takes its pictures.
        places: of each batch.
        on_fault: what an unreadable sample does: `raise`, or `skip`, which puts the next readable
            one of the same batch in its place, so that ranks stay in step.
        load: makes the pictures.
        leave: says of a file that it is not to be decoded here, but given as it is.
    """

    def __init__(
        self,
        index: ShardIndex,
        split: str,
        preprocess: Preprocess,
        places: Callable[[int], Places],
        on_fault: OnFault = "raise",
        load: Load = load_exactly,
        leave: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._index, self._shards = index, index.split(split)
        self._preprocess, self._load, self._leave = preprocess, load, leave
        self._places, self._on_fault = places, on_fault
        self._reader: ShardReader | None = None

    @property
    def fit(self) -> Fit:
        """How pictures become square."""
        return self._preprocess.fit

    @property
    def leaves(self) -> bool:
        """Whether pictures may come that are still to be decoded."""
        return self._leave is not None

    def shape(self, number: int) -> tuple[int, int, int, int]:
        """Shape (b, S, S, 3) of a batch's pictures."""
        side = self._preprocess.size
        return len(self._places(number)), side, side, 3

    def read(self, number: int, images: Picture, say: Callable[[int, int], None]) -> Companions:
        """Reads batch `number`.

        Args:
            number: of the batch.
            images: (b, S, S, 3) uint8, which the pictures are written into.
            say: called with `number` and the row that is read next.

        Raises:
            UserError: a sample cannot be read, or with `skip` none of the batch.
        """
        # Made on first use, so that each worker process has file handles of its own.
        reader = self._reader = self._reader or ShardReader(self._index)
        places: list[list[int]] = self._places(number).tolist()
        if isinstance(self._index.root, Remote):
            following = self._places(number + 1).tolist()
            shards = dict.fromkeys(shard for shard, _ in [*places, *following])
            reader.prefetch(self._shards[shard] for shard in shards)
        labels = np.full((len(places), len(self._index.schema.names)), UNKNOWN, np.int64)
        found = Companions(labels, [""] * len(places), [], [], {})
        samples: dict[int, Sample] = {}

        def fetch(row: int) -> None:
            shard, position = places[row]
            sample = samples[row] = reader.read(self._shards[shard], position)
            found.labels[row], found.item_ids[row] = sample.labels, sample.item_id

        def decode(row: int) -> None:
            sample = samples[row]
            if self._leave is not None and self._leave(sample.picture):
                found.encoded[row] = sample.picture
            else:
                self._load(self._preprocess, sample.picture, sample.where, images[row])

        # All are fetched, then all decoded: in turns, each would push the other's code out of the
        # processor's caches.
        for work in (fetch, decode):
            for row in sorted(set(range(len(places))) - set(found.stood_in)):
                say(number, row)
                try:
                    work(row)
                except (UserError, OSError) as error:
                    self._record(error, places[row], row, found)
        _fill_gaps(images, found)
        return found

    def _record(
        self, error: UserError | OSError, place: list[int], row: int, found: Companions
    ) -> None:
        """Counts a row among those that could not be read, or raises."""
        fault = self._name_place(error, *place)
        if self._on_fault == "raise":
            raise UserError(
                f"{fault}; mend it, or go on without it: data.on_fault = 'skip'"
            ) from None
        found.faults.append(fault)
        found.stood_in.append(row)

    def where(self, number: int, item: int) -> str:
        """The shard and position of a batch's item."""
        return self._where(*self._places(number)[item].tolist())

    def _name_place(self, error: Exception, shard: int, position: int) -> str:
        where = self._where(shard, position)
        return str(error) if str(error).startswith(where) else f"{where}: {error}"

    def _where(self, shard: int, position: int) -> str:
        return f"{self._index.root}/{self._shards[shard].name}, sample {position}"


def _fill_gaps(images: Picture, found: Companions) -> None:
    """Each gap takes the next sample there is, going round."""
    there = sorted(set(range(len(found.item_ids))) - set(found.stood_in))
    if not there:
        raise UserError(f"no sample of a batch can be read; the first: {found.faults[0]}")
    for gap in found.stood_in:
        following = there[bisect(there, gap) % len(there)]
        images[gap], found.labels[gap] = images[following], found.labels[following]
        found.item_ids[gap] = found.item_ids[following]
        if following in found.encoded:
            found.encoded[gap] = found.encoded[following]
