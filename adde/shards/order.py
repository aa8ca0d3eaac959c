"""The order of samples in training: a pure function of (seed, epoch, position).

An epoch goes through the shards in random order, a window of a few shards at a time. Within a
window the edit groups come in random order and stay whole. A batch shuffles only the groups of the
windows that it touches, and computes only the requested rows. So the last batch of an epoch costs
the same as the first, and a rank pays for its own rows only.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adde.errors import UserError
from adde.schema import Rows
from adde.shards.balance import draw_groups
from adde.shards.shard import Shard

Addresses = npt.NDArray[np.int64]
"""(n, 2) int64: shard number and position in the shard of each sample."""


class SampleOrder:
    """The global batches of a split; step s of epoch e has number e * steps_per_epoch + s.

    Args:
        shards: The split's shards, in index order.
        batch_size: Items in a global batch.
        seed: Seed of the run.
        window: Number of shards whose groups are shuffled together.
        last_batch: What to do if items do not fill an epoch's last batch: `drop` leaves them out of
            this epoch, `pad` adds the first items of the epoch.
        balance: Labels of one attribute, (samples,) int64 for each shard. Each window then shows
            its values equally often, in as many samples as it has: groups are drawn with
            replacement, and the last one of a window may be cut.

    Raises:
        UserError: The split has fewer items than one batch, and `last_batch` is `drop`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_size: int,
        seed: int,
        window: int = 16,
        last_batch: Literal["drop", "pad"] = "drop",
        balance: Sequence[Rows] | None = None,
    ) -> None:
        self._shards, self._balance = shards, balance
        self._samples = np.array([shard.samples for shard in shards], dtype=np.int64)
        self._seed, self._window = seed, window
        self.batch_size = batch_size
        self._total = int(self._samples.sum())
        left = self._total % batch_size
        pad = last_batch == "pad" and left > 0
        self.steps_per_epoch = self._total // batch_size + pad
        self.dropped_per_epoch = 0 if pad else left
        """Items left out at the end of each epoch; different items each time."""
        self.repeated_per_epoch = batch_size - left if pad else 0
        """Items shown twice to fill an epoch's last batch; different items each time."""
        if not self.steps_per_epoch:
            raise UserError(
                f"batch_size: expected at most the {self._total} items of the training split, "
                f"found {batch_size}; or fill the batch with data.last_batch = 'pad'"
            )
        self._memo: dict[tuple[int, ...], Any] = {}

    def batch(self, step: int) -> Addresses:
        """Return the (batch_size, 2) addresses of a global batch."""
        return self.share(step, 0, self.batch_size)

    def share(self, step: int, start: int, stop: int) -> Addresses:
        """Return the (stop - start, 2) addresses of rows `start` to `stop` of a global batch."""
        epoch, step = divmod(step, self.steps_per_epoch)
        at, stop = step * self.batch_size + start, step * self.batch_size + stop
        parts: list[Addresses] = []
        while at < stop:  # past its end, the epoch starts again
            first, count = at % self._total, min(stop - at, self._total - at % self._total)
            parts.append(self._stretch(epoch, first, first + count))
            at += count
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def counts(self, steps: int) -> dict[str, float]:
        """Return what the first `steps` batches consumed.

        These are epochs, samples, repeated samples, and samples dropped at the ends of epochs.
        """
        epochs = steps // self.steps_per_epoch
        return {
            "epoch": steps / self.steps_per_epoch,
            "samples": steps * self.batch_size,
            "repeated": epochs * self.repeated_per_epoch,
            "dropped": epochs * self.dropped_per_epoch,
        }

    def _stretch(self, epoch: int, start: int, stop: int) -> Addresses:
        """Return the addresses of an epoch's positions from `start` to `stop`."""
        _, ends = self._shard_order(epoch)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        addresses = np.empty((stop - start, 2), np.int64)
        for window in range(int(first), int(last) + 1):
            before = int(ends[window - 1]) if window else 0
            positions = np.arange(max(start, before), min(stop, int(ends[window])))
            rows = slice(int(positions[0]) - start, int(positions[-1]) + 1 - start)
            shards, offsets, group_ends = self._window_groups(epoch, window)
            positions -= before
            group = np.searchsorted(group_ends, positions, side="right")
            addresses[rows, 0], addresses[rows, 1] = shards[group], positions + offsets[group]
        return addresses

    def _shard_order(self, epoch: int) -> tuple[Addresses, Addresses]:
        return self._remember((epoch,), self._shuffle_shards)

    def _window_groups(self, epoch: int, window: int) -> tuple[Addresses, Addresses, Addresses]:
        return self._remember((epoch, window), self._shuffle_window)

    def _remember(self, key: tuple[int, ...], make: Callable[..., Any]) -> Any:
        """Cache the last few results: two epochs' shard orders and a batch's windows."""
        if key not in self._memo:
            if len(self._memo) >= 6:
                del self._memo[next(iter(self._memo))]
            self._memo[key] = make(*key)
        return self._memo[key]

    def _shuffle_shards(self, epoch: int) -> tuple[Addresses, Addresses]:
        """Return the epoch's shard numbers in order, and the end position of each window."""
        order = self._random(epoch).permutation(len(self._samples))
        starts = np.arange(0, len(order), self._window)
        return order, np.add.reduceat(self._samples[order], starts).cumsum()

    def _shuffle_window(self, epoch: int, window: int) -> tuple[Addresses, Addresses, Addresses]:
        """Return the shards, offsets and end positions of a window's groups, in shuffled order.

        The offset is added to a position in the window to get the position in the shard.
        """
        order, _ = self._shard_order(epoch)
        numbers = order[window * self._window : (window + 1) * self._window]
        chosen: list[int] = numbers.tolist()
        groups = [self._shards[number].groups for number in chosen]
        sizes = np.concatenate(groups)
        starts = np.concatenate([lengths.cumsum() - lengths for lengths in groups])
        shards = np.repeat(numbers, [len(lengths) for lengths in groups])
        random = self._random(epoch, window)
        if self._balance is None:
            shuffled = random.permutation(len(sizes))
        else:
            values = np.concatenate([self._balance[number] for number in chosen])
            shuffled = draw_groups(values, sizes, random)
        sizes, starts = sizes[shuffled], starts[shuffled]
        ends = np.cumsum(sizes)
        return shards[shuffled], starts - (ends - sizes), ends

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, *key))))
