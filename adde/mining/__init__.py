"""Triplet mining: `mine` for label triplets, `draw_edits` and `semihard_negatives` for manipulation
triplets.
"""

from adde.mining.draws import draw_key, uniform
from adde.mining.labels import joint_labels
from adde.mining.manipulation import (
    DrawnEdits,
    draw_edits,
    fits_and_conflicts,
    semihard_negatives,
)
from adde.mining.triplets import LabelGrouping, Mined, mine

__all__ = [
    "DrawnEdits",
    "LabelGrouping",
    "Mined",
    "draw_edits",
    "draw_key",
    "fits_and_conflicts",
    "joint_labels",
    "mine",
    "semihard_negatives",
    "uniform",
]
