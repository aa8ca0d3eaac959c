"""The global batch is the recipe's; a rank's share of it follows from how many ranks there are."""

from adde.errors import UserError
from adde.training.config import Data


def micro_batch(data: Data, ranks: int) -> int:
    """Items in one forward pass of one rank.

    Raises:
        UserError: the batch cannot be shared out evenly; names the nearest numbers of ranks,
            accumulation and batch size that can.
    """
    size, parts = data.batch_size, data.accumulation * ranks
    if size % parts == 0:
        return size // parts
    if size % data.accumulation:
        raise UserError(
            f"data.accumulation: expected a divisor of data.batch_size ({size}), found "
            f"{data.accumulation}; the nearest is {nearest_divisor(size, data.accumulation)}"
        )
    raise UserError(
        f"data.batch_size: expected a multiple of {parts} (accumulation {data.accumulation} x "
        f"{ranks} ranks), found {size}; the nearest is {max(1, round(size / parts)) * parts}, or "
        f"start {nearest_divisor(size // data.accumulation, ranks)} ranks (--num_processes)"
    )


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` nearest to `wanted`; the smaller of two."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
