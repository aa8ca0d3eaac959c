"""A drawn edit changes the pixels that it is about, and no others."""

import numpy as np

from adde.drawing import overlaid, shrunk


def test_only_what_the_edit_changes_is_drawn():
    draws = np.random.default_rng(0)
    picture = draws.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    own = np.full_like(picture, 100)
    edited = own.copy()
    edited[0, 4:6, 4:6, 1] = 200
    edited[1] = 103  # less than what counts
    found = overlaid(picture, own, edited)
    near = np.zeros((12, 12), bool)
    near[3:7, 3:7] = True
    assert np.array_equal(found[0][near], edited[0][near])
    assert np.array_equal(found[0][~near], picture[0][~near])
    assert np.array_equal(found[1], picture[1])


def test_pictures_are_averaged_to_the_size_that_is_drawn():
    picture = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    small = shrunk(picture, 2)
    assert small.shape == (2, 2, 2, 3)
    assert small[1, 0, 1, 2] == round(picture[1, :3, 3:, 2].mean())
    assert shrunk(picture, 6) is picture
