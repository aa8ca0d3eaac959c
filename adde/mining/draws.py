"""Counter-based random numbers: the same on every device and rank and in every tile.

A generator yields numbers in sequence, so every rank would have to draw those of the whole batch on
the CPU. Here a number is a hash of (key, row, column), computed where it is needed (Salmon et al.,
SC 2011). It uses integer arithmetic only, so the result is the same everywhere.
"""

import torch
from torch import Tensor


def draw_key(generator: torch.Generator) -> int:
    """Draw a key from a generator on the CPU; use a separate key for every purpose."""
    return int(torch.randint(2**62, (), generator=generator))


def words(key: int, index: Tensor) -> Tensor:
    """Hash each index (int64 >= 0) to 32 random bits, as int32; input of `pair_bits`.

    The finaliser of splitmix64 (Steele et al., OOPSLA 2014). Products overflow on purpose.
    """
    mixed = (index + key) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shift_right(mixed, shift)) * _signed(factor)
    return _shift_right(mixed, 32).int()


def pair_bits(rows: Tensor, columns: Tensor) -> Tensor:
    """Combine `words` of rows and columns, broadcast, to uniform int32 in [0, 2^31).

    Rows and columns need different keys.
    """
    bits = rows ^ columns
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # lowbias32, up to its last shift
        bits ^= (bits >> shift) & (0xFFFFFFFF >> shift)  # mask, as >> copies the sign bit
        bits *= factor
    return (bits >> 1).bitwise_and_(0x7FFFFFFF)  # the upper bits are mixed better


def uniform(key: int, rows: Tensor, columns: int) -> Tensor:
    """Draw (n, columns) float32 in [0, 1) for rows (n,) int64 >= 0."""
    places = torch.arange(columns, device=rows.device)
    bits = pair_bits(words(key, rows)[:, None], words(~key, places))
    # 24 bits are exact in float32, so no number is rounded up to 1.
    return (bits >> 7).float() * 2.0**-24


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64)
