"""Directions of attributes in the latents, by a ridge regression over streamed batches.

For two values of one attribute that is independent of the others, the difference of two directions
is the published one: the mean latent of items with a value less that of items with the other.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adde.distributed import sum_over_ranks
from adde.errors import UserError
from adde.files import atomic_path
from adde.schema import UNKNOWN, Schema

DIRECTIONS_NAME = "directions.safetensors"


class Regression:
    """The normal equations of latents (n, D) on labels (n, A), an intercept and a number a value.

    Args:
        schema: of the labels; it has V values.
        dimensions: D.
        device: of the sums.
    """

    def __init__(self, schema: Schema, dimensions: int, device: torch.device) -> None:
        self._sizes, self._offsets = schema.sizes, torch.tensor(schema.offsets, device=device)
        columns = schema.num_values + 1
        self._squares = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._products = torch.zeros(columns, dimensions, dtype=torch.float64, device=device)

    def add(self, latents: Tensor, labels: Tensor) -> None:
        """Add a batch; an unknown label adds to the intercept alone."""
        hot = latents.new_zeros(len(labels), len(self._squares), dtype=torch.float64)
        hot[:, 0] = 1
        row, attribute = (labels != UNKNOWN).nonzero(as_tuple=True)
        hot[row, 1 + self._offsets[attribute] + labels[row, attribute]] = 1
        self._squares += hot.T @ hot
        self._products += hot.T @ latents.double()

    def solve(self, penalty: float) -> Tensor:
        """Return the direction of each value, (V, D) float32; on all ranks.

        Args:
            penalty: of the squared norm of directions; the intercept has none.
        """
        weights = torch.full_like(self._squares[0], penalty)
        weights[0] = 0
        squares = sum_over_ranks(self._squares) + weights.diag()
        return torch.linalg.solve(squares, sum_over_ranks(self._products))[1:].float()


def edited(
    latents: Tensor, directions: Tensor, labels: Tensor, targets: Tensor, schema: Schema
) -> Tensor:
    """Move latents (n, D) from labels to targets, both (n, A); unknown ones do not move."""
    moved = latents.clone()
    for attribute, offset in enumerate(schema.offsets):
        own, wanted = labels[:, attribute], targets[:, attribute]
        change = directions[offset + wanted] - directions[offset + own]
        moved += change * ((own != UNKNOWN) & (wanted != UNKNOWN))[:, None]
    return moved


def write_directions(folder: Path, directions: Tensor) -> None:
    """Write directions (V, D) into a checkpoint's folder."""
    path = folder / DIRECTIONS_NAME
    with atomic_path(path) as temporary:
        save_file({"directions": directions.cpu().contiguous()}, temporary)


def read_directions(folder: Path) -> Tensor:
    """Read the directions of a checkpoint.

    Raises:
        UserError: there are none.
    """
    path = folder / DIRECTIONS_NAME
    if not path.exists():
        raise UserError(
            f"{path}: expected directions of attributes, which the end of a run writes into its "
            "best checkpoint, found none; finish the run, and use --checkpoint best"
        )
    return load_file(path)["directions"]
