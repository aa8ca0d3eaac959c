"""The head in its two forms. Both make the mean over an outfit's items one query.

Symbols: B questions, L items of an outfit (padded), K candidates, C categories, V attribute values,
A attributes, D width of a subspace, D' of a projected one.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from adde.methods.outfits.features import Items
from adde.preprocess import Preprocess
from adde.schema import Schema

HIDDEN = 64
"""Units between two categories and the attention over attributes."""


class Question(NamedTuple):
    """Outfits of which an item is missing."""

    features: Tensor
    """(B, L, ...) float32 of the items that are there; see `Head.wants`."""
    categories: Tensor
    """(B, L) int64; -1 where there is no item."""
    target: Tensor
    """(B,) int64 category of the missing item."""


class Head(nn.Module):
    """Scores candidates of a category by how well they go with an outfit; larger is better."""

    # Batches have no pictures (`Method.reads_pictures`).
    preprocess = Preprocess(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "squash")

    items: Items | None = None
    """The encoded items and outfits of a training run; not part of a checkpoint."""

    encoder: Tensor
    """(32,) uint8 sha256 of the encoder's checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("encoder", torch.zeros(32, dtype=torch.uint8))

    wants: str
    """Representation of an item: `values` (V,), or `subspaces` (A, D) of unit length each."""

    def score(self, question: Question, candidates: Tensor) -> Tensor:
        """(B, K) scores of candidates (B, K, ...), the mean over the outfit's items."""
        raise NotImplementedError

    def forward(self, question: Question, candidates: Tensor) -> "Scored":
        """Scores, and how far the head is from its start."""
        return Scored(self.score(question, candidates), self.drift())

    def drift(self) -> Tensor | None:
        """Squared distance from the start; None where nothing holds it there."""
        return None


class Scored(NamedTuple):
    """Outputs of a forward pass."""

    scores: Tensor
    """(B, K) float32."""
    drift: Tensor | None
    """Scalar."""


class Bilinear(Head):
    """S(O, s) = mean_i phi(o_i) B[c(o_i), c(s)] phi(s) = q phi(s), phi the values' beliefs."""

    wants = "values"
    start: Tensor
    """(C, C, V, V) float32, where `drift` counts from."""

    def __init__(self, schema: Schema, category: int) -> None:
        super().__init__()
        count, values = schema.sizes[category], schema.num_values
        self.table = nn.Parameter(torch.zeros(count, count, values, values))
        self.register_buffer("start", torch.zeros_like(self.table))

    @torch.no_grad()
    def begin(self, table: Tensor) -> None:
        """Start from a table (C, C, V, V)."""
        self.table.copy_(table)
        self.start.copy_(table)

    @property
    def matrix(self) -> Tensor:
        """(C V, C V): all tables, from values by category to values by category."""
        count, _, values, _ = self.table.shape
        return self.table.permute(0, 2, 1, 3).reshape(count * values, count * values)

    def query(self, question: Question) -> Tensor:
        """Queries (B, V): features added up by category, in one product with all tables."""
        count, _, values, _ = self.table.shape
        there = nn.functional.one_hot(question.categories + 1, count + 1)[..., 1:].float()
        of_category = there.mT @ question.features  # (B, C, V)
        queries = (of_category.flatten(1) @ self.matrix).unflatten(1, (count, values))
        target = question.target[:, None, None].expand(-1, 1, values)
        items = there.sum((1, 2)).clamp(min=1)[:, None]
        return queries.gather(1, target)[:, 0] / items

    def score(self, question: Question, candidates: Tensor) -> Tensor:
        """As `Head.score`."""
        return (candidates @ self.query(question)[..., None])[..., 0]

    def drift(self) -> Tensor:
        """As `Head.drift`."""
        return (self.table - self.start).square().sum()


class DistanceQuery(NamedTuple):
    """D(O, s) = sum_a weights_a |y_a(s) - centre_a|^2 + constant."""

    weights: Tensor
    """W, (B, A)."""
    centre: Tensor
    """Weighted mean of the projected items, (B, A, D')."""
    constant: Tensor
    """(B,); the same for every candidate."""


class Distance(Head):
    """The paper's head: S(O, s) = -mean_i |f(o_i) - f(s)|^2, f = [w_1 F_1 r_1, ..., w_A F_A r_A].

    The weights are an attention over attributes from the categories of o_i and s. As both sides
    have the same, the mean over the outfit's items is one weighted distance from one centre.
    """

    wants = "subspaces"

    def __init__(
        self, schema: Schema, category: int, subspace: int, width: int, by_category: bool
    ) -> None:
        super().__init__()
        self.count = schema.sizes[category]
        sets, attributes = self.count if by_category else 1, len(schema.sizes)
        scale = subspace**-0.5
        self.projections = nn.Parameter(torch.randn(sets, attributes, subspace, width) * scale)
        self.attention = nn.Sequential(
            nn.Linear(2 * self.count, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, attributes)
        )

    def project(self, features: Tensor, categories: Tensor) -> Tensor:
        """Y (..., A, D') of items (..., A, D) of categories (...)."""
        if len(self.projections) == 1:
            return torch.einsum("...ad,adw->...aw", features, self.projections[0])
        chosen = self.projections[categories.clamp(min=0)]
        return torch.einsum("...ad,...adw->...aw", features, chosen)

    def query(self, question: Question) -> DistanceQuery:
        """The outfit as one weighted distance."""
        there = question.categories >= 0
        items = there.sum(1).clamp(min=1)[:, None]
        pairs = [question.categories.clamp(min=0), question.target[:, None].expand_as(there)]
        hot = torch.cat([nn.functional.one_hot(c, self.count).float() for c in pairs], -1)
        alpha = self.attention(hot).softmax(-1).square() * there[..., None]  # (B, L, A)
        projected = self.project(question.features, question.categories)
        total = alpha.sum(1)
        centre = (alpha[..., None] * projected).sum(1) / total[..., None].clamp(min=1e-12)
        weights = total / items
        squares = (alpha * projected.square().sum(-1)).sum((1, 2)) / items[:, 0]
        constant = squares - (weights * centre.square().sum(-1)).sum(1)
        return DistanceQuery(weights, centre, constant)

    def score(self, question: Question, candidates: Tensor) -> Tensor:
        """As `Head.score`."""
        query = self.query(question)
        kinds = question.target[:, None].expand(candidates.shape[:2])
        offsets = self.project(candidates, kinds) - query.centre[:, None]
        distances = (query.weights[:, None] * offsets.square().sum(-1)).sum(-1)
        return -(distances + query.constant[:, None])


def subspaces(embeddings: Tensor) -> Tensor:
    """Embeddings (N, A, D) with subspaces of unit length."""
    return cast(Tensor, nn.functional.normalize(embeddings, dim=-1))
