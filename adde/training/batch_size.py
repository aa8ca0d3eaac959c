"""Divide the recipe's global batch among ranks and accumulation steps."""

from adde.errors import UserError
from adde.training.config import Data


def micro_batch(data: Data, ranks: int) -> int:
    """Return the number of items in one forward pass of one rank.

    Raises:
        UserError: the batch does not divide evenly; names the nearest batch size and numbers of
            ranks and accumulation steps that do.
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
    """Return the divisor of `number` nearest to `wanted`; of two, the smaller."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), d))
