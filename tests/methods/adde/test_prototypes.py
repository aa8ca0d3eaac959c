import numpy as np
import pytest

from adde.methods.adde.prototypes import block_energy, cosines, nearest

NAMES = ["top=red", "top=blue", "hat=none", "hat=cap"]


def test_block_energy_is_the_share_of_the_squared_norm_in_the_own_block() -> None:
    # Two attributes of width 2: the first two rows own columns 0 and 1, the others 2 and 3.
    rows = np.array([[3, 0, 0, 0], [1, 1, 1, 1], [3, 0, 0, 4], [0, 0, 0, 0]], dtype=np.float32)
    found = block_energy(rows, (2, 2))
    assert found[:3] == pytest.approx([1, 0.5, 16 / 25])
    assert np.isnan(found[3])


def test_the_nearest_prototypes_leave_itself_out() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    found = nearest(cosines(rows), NAMES, 2)
    assert [[name for name, _ in others] for others in found] == [
        ["top=blue", "hat=none"],
        ["top=red", "hat=none"],
        ["top=blue", "top=red"],
        ["hat=none", "top=blue"],
    ]
    assert found[0][0][1] == pytest.approx(1 / np.sqrt(1.01))
    assert len(nearest(cosines(rows[:2]), NAMES[:2], 5)[0]) == 1
