"""Random numbers as a function of their place: the same on every device, rank and batch tile.

A generator gives its numbers in the order they are asked for, so every rank would have to draw for
the whole batch, on the CPU. Here a number is a hash of (key, row, column), computed where it is
needed (counter-based, as in Salmon et al., SC 2011): integers alone, hence the same everywhere.
"""

import torch
from torch import Tensor


def draw_key(generator: torch.Generator) -> int:
    """A key from a generator on the CPU; every purpose takes one of its own."""
    return int(torch.randint(2**62, (), generator=generator))


def words(key: int, index: Tensor) -> Tensor:
    """32 random bits of each index (int64 >= 0), as int32; for `pair_bits`.

    The finaliser of splitmix64 (Steele et al., OOPSLA 2014). Products wrap.
    """
    mixed = (index + key) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shift_right(mixed, shift)) * _signed(factor)
    return _shift_right(mixed, 32).int()


def pair_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Independent uniform int32 in [0, 2^31) of pairs of `words`, broadcast against each other.

    Rows and columns need keys of their own.
    """
    bits = rows ^ columns
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # lowbias32, up to its last shift
        bits ^= (bits >> shift) & (0xFFFFFFFF >> shift)  # torch fills with the sign
        bits *= factor
    return (bits >> 1).bitwise_and_(0x7FFFFFFF)  # the upper ones are the better mixed


def uniform(key: int, rows: Tensor, columns: int) -> Tensor:
    """(n, columns) float32 in [0, 1) of rows (n,) int64 >= 0."""
    places = torch.arange(columns, device=rows.device)
    bits = pair_bits(words(key, rows)[:, None], words(~key, places))
    # 24 bits are exact in float32, and no draw is rounded up to 1.
    return (bits >> 7).float() * 2.0**-24


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """To the right, filled with zeros."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64)
