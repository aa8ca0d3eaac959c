"""Draws by place: against the same hash in plain Python, and as random numbers."""

import itertools

import pytest
import torch

from adde.mining import draw_edits, draw_key, uniform

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


def word(key, index):
    x = (index + key) * 0x9E3779B97F4A7C15 & M64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x >> 32


def by_hand(key, row, column):
    x = word(key, row) ^ word(~key, column)
    x = (x ^ x >> 16) * 0x21F0AAAD & M32
    x = (x ^ x >> 15) * 0x735A2D97 & M32
    return (x >> 8) / 2**24


@pytest.mark.parametrize("key", [0, 1, 12345678901234567, 2**62 - 1])
def test_a_draw_is_a_function_of_its_key_row_and_column(key):
    rows = torch.tensor([0, 1, 7, 32767, 2**40])
    found = uniform(key, rows, 6)
    for (i, row), column in itertools.product(enumerate(rows.tolist()), range(6)):
        assert found[i, column].item() == by_hand(key, row, column)


def test_draws_are_even_and_independent():
    draws = uniform(draw_key(torch.Generator().manual_seed(4)), torch.arange(40_000), 8).double()
    assert draws.min() >= 0 and draws.max() < 1
    shares = torch.histc(draws, 20, 0, 1) / draws.numel()
    assert (shares - 0.05).abs().max() < 0.002  # 5 standard deviations
    correlations = torch.corrcoef(draws.T) - torch.eye(8)
    assert correlations.abs().max() < 0.025
    after = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))
    assert abs(after[0, 1]) < 0.01
    largest = torch.bincount(draws.argmax(1), minlength=8) / len(draws)
    assert (largest - 1 / 8).abs().max() < 0.01


def test_a_rank_draws_what_one_rank_draws_for_its_items():
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(-1, 4, (60, 3), generator=random)
    offsets = torch.tensor([0, 4, 8])
    whole = draw_edits(labels, labels, torch.arange(60), 99, offsets)
    for rows in (slice(0, 7), slice(7, 50), slice(50, 60)):
        part = draw_edits(labels[rows], labels, torch.arange(60)[rows], 99, offsets)
        for expected, found in zip(whole, part):
            assert torch.equal(expected[rows], found)
    other = draw_edits(labels, labels, torch.arange(60), 100, offsets)
    assert not torch.equal(whole.positive, other.positive)
