"""The prototype memory M in R^(A D x V): one column per attribute value."""

from functools import cache

import torch
from torch import Tensor, nn

from adde.schema import UNKNOWN, Schema


class PrototypeMemory(nn.Module):
    """Edits and reconstructions are products with M (docs/architecture.md, equation 5)."""

    of_column: Tensor
    """(V,) int64, the attribute of each column."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        attributes = len(schema.sizes)
        self.weight = nn.Parameter(torch.zeros(attributes * width, schema.num_values))
        # Data parallelism broadcasts buffers in every step: a mask of M's size would be too much.
        of_column = torch.from_numpy(schema.attribute_of_column)
        self.register_buffer("of_column", of_column, persistent=False)
        self._shape = (attributes, width)

    def forward(self, coefficients: Tensor) -> Tensor:
        """M c for coefficients (B, V) float, an indicator or multi-hot labels: (B, A, D)."""
        product = torch.nn.functional.linear(coefficients.to(self.weight.dtype), self.weight)
        return product.float().unflatten(1, self._shape)

    def no_weight_decay(self) -> set[str]:
        """Prototypes do not decay."""
        return {"weight"}

    @property
    def off_block(self) -> Tensor:
        """(A D, V) bool: entries outside the column's own attribute."""
        attributes, width = self._shape
        of_row = torch.arange(attributes, device=self.of_column.device).repeat_interleave(width)
        return of_row[:, None] != self.of_column

    def off_block_l1(self) -> Tensor:
        """||N o M||_1, the sum of absolute off-block entries; scalar."""
        # Summed over each block first: what is masked is then (A, V).
        blocks = self.weight.abs().unflatten(0, self._shape).sum(1)
        attributes = torch.arange(len(blocks), device=blocks.device)
        return blocks.where(attributes[:, None] != self.of_column, 0).sum()

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor) -> None:
        """Sets M from prototypes (V, D), each in its own attribute's block; zero elsewhere."""
        columns = torch.arange(len(prototypes), device=prototypes.device)
        self.weight.zero_()
        self.weight.unflatten(0, self._shape)[self.of_column, :, columns] = prototypes


@cache
def first_columns(schema: Schema, device: torch.device) -> Tensor:
    """(A,) int64, each attribute's first column; kept on the device, which a copy would hold up."""
    return torch.tensor(schema.offsets, device=device)


def multi_hot(labels: Tensor, schema: Schema) -> Tensor:
    """(B, V) float32 with 1 at each known value's column, of labels (B, A) int64."""
    columns = labels + first_columns(schema, labels.device)
    spare = schema.num_values  # UNKNOWN goes to a column that is cut off again
    columns = torch.where(labels == UNKNOWN, spare, columns)
    hot = torch.zeros(len(labels), spare + 1, device=labels.device)
    return hot.scatter_(1, columns, 1.0)[:, :spare]
