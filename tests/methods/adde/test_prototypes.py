import copy

import numpy as np
import pytest
import torch

from adde.methods.adde.config import AddeConfig, AddeStage
from adde.methods.adde.evaluation import prototypes
from adde.methods.adde.method import METHOD
from adde.methods.adde.prototypes import block_energy, cosines, nearest
from adde.shards.index import ShardIndex
from adde.training.evaluation import Evaluator

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


@pytest.mark.parametrize("start", ["means", "classifier"])
def test_the_memory_starts_from_means_or_from_classifiers_of_their_length(
    start, tiny_shards, tiny_model
):
    model = copy.deepcopy(tiny_model)
    evaluator = Evaluator(ShardIndex.read(tiny_shards), 16, 0, torch.device("cpu"))
    stage = AddeConfig(adde=AddeStage(prototypes=start, train_memory=False)).stages()[-1]
    assert stage.frozen == ("memory",)
    assert METHOD.before(stage, model, evaluator)
    means, _ = prototypes(evaluator, model)
    width = model.settings.width
    for a, (offset, size) in enumerate(zip(model.schema.offsets, model.schema.sizes)):
        for value in range(size):
            column = model.memory.weight[:, offset + value].view(-1, width)
            mean = means[offset + value]
            if start == "means":
                expected = mean
            else:
                weights = model.classifiers.linear.weight[a, :, value]
                expected = weights / weights.norm() * mean.norm()
            torch.testing.assert_close(column[a], expected)
            assert not column[torch.arange(len(column)) != a].any()
