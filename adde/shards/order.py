"""The order of samples: a pure function of (seed, epoch, index), whoever reads it.

An epoch is the shards in random order, cut into windows of a few shards; inside a window the
edit groups come in random order, each whole. Only the groups of the windows that a batch touches
are shuffled, and only the rows that are asked for laid out, so a position deep in an epoch costs
the same as the first, and a rank's share no more than its own rows.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.shards.index import Shard

Places = npt.NDArray[np.int64]
"""(n, 2) int64 rows (shard number, position in the shard)."""


class SampleOrder:
    """Global batches of a split's shards; step s of epoch e is step e * steps_per_epoch + s.

    Args:
        shards: the split's shards, in index order.
        batch_size: items in a global batch.
        seed: of the run.
        window: shards whose groups are shuffled together.
        last_batch: an epoch's last batch, where the items do not fill it: `drop` leaves its items
            to the next epoch, `pad` fills it up with the first items of the same epoch.

    Raises:
        UserError: the split has fewer items than one batch, and `last_batch` is `drop`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_size: int,
        seed: int,
        window: int = 16,
        last_batch: Literal["drop", "pad"] = "drop",
    ) -> None:
        self._shards = shards
        self._samples = np.array([shard.samples for shard in shards], dtype=np.int64)
        self._seed, self._window = seed, window
        self.batch_size = batch_size
        self._total = int(self._samples.sum())
        left = self._total % batch_size
        pad = last_batch == "pad" and left > 0
        self.steps_per_epoch = self._total // batch_size + pad
        self.dropped_per_epoch = 0 if pad else left
        """Items at the end of each epoch's order that fill no batch; other items each epoch."""
        self.repeated_per_epoch = batch_size - left if pad else 0
        """Items that an epoch shows twice to fill its last batch; other items each epoch."""
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size: expected at most the {self._total} items of the training split, "
                f"found {batch_size}; or fill the batch up with data.last_batch = 'pad'"
            )
        self._memo: dict[tuple[int, ...], Any] = {}

    def batch(self, step: int) -> Places:
        """The (batch_size, 2) places of one global batch."""
        return self.share(step, 0, self.batch_size)

    def share(self, step: int, start: int, stop: int) -> Places:
        """The (stop - start, 2) places of one global batch from row `start` up to `stop`."""
        epoch, step = divmod(step, self.steps_per_epoch)
        at, stop = step * self.batch_size + start, step * self.batch_size + stop
        parts: list[Places] = []
        while at < stop:  # past the end, the epoch's first items come again
            first, count = at % self._total, min(stop - at, self._total - at % self._total)
            parts.append(self._stretch(epoch, first, first + count))
            at += count
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def counts(self, steps: int) -> dict[str, float]:
        """What the first `steps` batches consumed: epochs, samples, and those of them repeated;
        and the samples dropped at the ends of epochs.
        """
        epochs = steps // self.steps_per_epoch
        return {
            "epoch": steps / self.steps_per_epoch,
            "samples": steps * self.batch_size,
            "repeated": epochs * self.repeated_per_epoch,
            "dropped": epochs * self.dropped_per_epoch,
        }

    def _stretch(self, epoch: int, start: int, stop: int) -> Places:
        """The places of an epoch's positions from `start` up to `stop`."""
        _, ends = self._shard_order(epoch)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        places = np.empty((stop - start, 2), np.int64)
        for window in range(int(first), int(last) + 1):
            before = int(ends[window - 1]) if window else 0
            positions = np.arange(max(start, before), min(stop, int(ends[window])))
            rows = slice(int(positions[0]) - start, int(positions[-1]) + 1 - start)
            shards, offsets, group_ends = self._window_groups(epoch, window)
            positions -= before
            group = np.searchsorted(group_ends, positions, side="right")
            places[rows, 0], places[rows, 1] = shards[group], positions + offsets[group]
        return places

    def _shard_order(self, epoch: int) -> tuple[Places, Places]:
        return self._remember((epoch,), self._shuffle_shards)

    def _window_groups(self, epoch: int, window: int) -> tuple[Places, Places, Places]:
        return self._remember((epoch, window), self._shuffle_window)

    def _remember(self, key: tuple[int, ...], make: Callable[..., Any]) -> Any:
        """Keeps the last few results: two epochs' shard orders and a batch's windows."""
        if key not in self._memo:
            if len(self._memo) >= 6:
                del self._memo[next(iter(self._memo))]
            self._memo[key] = make(*key)
        return self._memo[key]

    def _shuffle_shards(self, epoch: int) -> tuple[Places, Places]:
        """The epoch's shard numbers in order, and each window's last position + 1."""
        order = self._random(epoch).permutation(len(self._samples))
        starts = np.arange(0, len(order), self._window)
        return order, np.add.reduceat(self._samples[order], starts).cumsum()

    def _shuffle_window(self, epoch: int, window: int) -> tuple[Places, Places, Places]:
        """A window's groups in order: their shards, what to add to a position in the window for
        the one in the shard, and each group's last position in the window + 1.
        """
        order, _ = self._shard_order(epoch)
        numbers = order[window * self._window : (window + 1) * self._window]
        chosen: list[int] = numbers.tolist()
        groups = [self._shards[number].groups for number in chosen]
        sizes = np.concatenate(groups)
        starts = np.concatenate([lengths.cumsum() - lengths for lengths in groups])
        shards = np.repeat(numbers, [len(lengths) for lengths in groups])
        shuffled = self._random(epoch, window).permutation(len(sizes))
        sizes, starts = sizes[shuffled], starts[shuffled]
        ends = np.cumsum(sizes)
        return shards[shuffled], starts - (ends - sizes), ends

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, *key))))
