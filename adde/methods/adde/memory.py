"""The prototype memory M in R^(A D x V): one column per attribute value."""

from functools import cache

import torch
from torch import Tensor, nn

from adde.model.precision import in_float32
from adde.schema import SEVERAL, UNKNOWN, Schema, shares


class PrototypeMemory(nn.Module):
    """Computes edits and reconstructions as products with M (docs/architecture.md, equation 5)."""

    of_column: Tensor
    """(V,) int64, the attribute of each column."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        attributes = len(schema.sizes)
        self.weight = nn.Parameter(torch.zeros(attributes * width, schema.num_values))
        # Data parallelism broadcasts buffers in every step, so no buffer has the size of M.
        of_column = torch.from_numpy(schema.attribute_of_column)
        self.register_buffer("of_column", of_column, persistent=False)
        self._shape = (attributes, width)

    @in_float32
    def forward(self, coefficients: Tensor) -> Tensor:
        """Compute M c (B, A, D) for coefficients (B, V): an indicator or multi-hot labels."""
        product = torch.nn.functional.linear(coefficients.to(self.weight.dtype), self.weight)
        return product.float().unflatten(1, self._shape)

    def no_weight_decay(self) -> set[str]:
        """Exclude the prototypes from weight decay."""
        return {"weight"}

    @property
    def off_block(self) -> Tensor:
        """(A D, V) bool: the entries outside the column's own block."""
        attributes, width = self._shape
        of_row = torch.arange(attributes, device=self.of_column.device).repeat_interleave(width)
        return of_row[:, None] != self.of_column

    def off_block_l1(self) -> Tensor:
        """Compute ||N o M||_1, the sum of absolute off-block entries; scalar."""
        # Sum over each block first, so that the mask is only (A, V).
        blocks = self.weight.abs().unflatten(0, self._shape).sum(1)
        attributes = torch.arange(len(blocks), device=blocks.device)
        return blocks.where(attributes[:, None] != self.of_column, 0).sum()

    @torch.no_grad()
    def set_prototypes(self, prototypes: Tensor) -> None:
        """Set M to prototypes (V, D), each in its own attribute's block, and zero elsewhere."""
        columns = torch.arange(len(prototypes), device=prototypes.device)
        self.weight.zero_()
        self.weight.unflatten(0, self._shape)[self.of_column, :, columns] = prototypes


@cache
def first_columns(schema: Schema, device: torch.device) -> Tensor:
    """Return (A,) int64, each attribute's first column; cached, as a copy would block."""
    return torch.tensor(schema.offsets, device=device)


def multi_hot(labels: Tensor, schema: Schema) -> Tensor:
    """Encode labels (B, A) int64 as (B, V) float32, as `Schema.multi_hot`."""
    columns = labels + first_columns(schema, labels.device)
    spare = schema.num_values  # extra column for UNKNOWN and sets, removed below
    columns = torch.where((labels == UNKNOWN) | (labels >= SEVERAL), spare, columns)
    hot = torch.zeros(len(labels), spare + 1, device=labels.device)
    hot = hot.scatter_(1, columns, 1.0)[:, :spare]
    for a in schema.multiple:
        part = slice(schema.offsets[a], schema.offsets[a] + schema.sizes[a])
        hot[:, part] = shares(labels[:, a], torch.arange(schema.sizes[a], device=labels.device))
    return hot
