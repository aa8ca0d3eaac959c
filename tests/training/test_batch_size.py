"""Division of a batch among ranks and accumulation steps."""

import pytest

from adde.errors import UserError
from adde.training.batch_size import micro_batch
from adde.training.config import Data


@pytest.mark.parametrize(
    ("size", "accumulation", "ranks", "message"),
    [
        (64, 1, 3, "expected a multiple of 3 .* found 64; the nearest is 63, or start 2 ranks"),
        (64, 4, 5, "multiple of 20 .* the nearest is 60, or start 4 ranks"),
        (
            64,
            3,
            2,
            r"data.accumulation: expected a divisor of data.batch_size \(64\), found 3; .* 2",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_out_names_the_nearest(size, accumulation, ranks, message):
    with pytest.raises(UserError, match=message):
        micro_batch(Data(batch_size=size, accumulation=accumulation), ranks)
