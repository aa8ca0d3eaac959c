"""The objective of a decoder: reconstruct pictures, and draw edits that the encoder sees as such.

    |x - dec(r, s)| + beta KL(s) + cycle |E(dec(r', s)) - r'|

r is the picture's embedding by the frozen encoder E, and r' the memory's edit of it towards the
labels of another item. For some pictures r is instead the other item's embedding, edited towards
the picture's own labels, so that the decoder learns to draw what the memory makes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.losses import Term
from adde.methods.adde.memory import first_columns, multi_hot
from adde.methods.adde.opening import FrozenEncoder
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.model import as_drawn, see
from adde.methods.vae.losses import kl, reconstruction
from adde.mining import draw_edits, draw_key, uniform
from adde.schema import UNKNOWN, Schema
from adde.training.method import Objective, Stage
from adde.training.terms import Terms, finite_rows, item_shares
from adde.training.watching.profiling import part


@dataclass(frozen=True)
class Plan:
    """Random draws for a rank's b items, and their embeddings."""

    noise: Tensor
    """eps of the style, (b, L) float32."""
    embeddings: Tensor
    """To reconstruct the pictures from, (b, A, D) float32."""
    edited: Tensor
    """r', (b, A, D) float32."""
    usable: Tensor
    """(b,) bool: r' is an edit."""
    again: Tensor
    """(b,) bool: r' is drawn and encoded again."""


class Outputs(NamedTuple):
    """A row per item."""

    mean: Tensor
    """Mean of the style's posterior, (b, L) float32."""
    log_variance: Tensor
    """(b, L) float32."""
    logits: Tensor
    """Reconstructed pixels, as logits (b, 3, S, S) float32."""
    seen: Tensor
    """E(dec(r', s)), (b, A, D) float32; zero where it is not drawn."""


class DecoderObjective(Objective):
    """The losses of a decoder, by the names of `DecoderConfig.weights`."""

    def __init__(self, config: DecoderConfig, schema: Schema, frozen: FrozenEncoder) -> None:
        self._config, self._schema, self._frozen = config, schema, frozen.model

    def plan(
        self, stage: Stage, batch: Batch, draws: torch.Generator, ranks: RankRows | None = None
    ) -> Plan:
        """As `Objective.plan`; edits are those of the miner."""
        labels, device = batch.labels, batch.images.device
        ranks = ranks or RankRows.equal(len(labels))
        items = ranks.columns(device)
        all_labels = ranks.gather(labels)
        offsets = first_columns(self._schema, device)
        edits = draw_edits(labels, all_labels, items, draw_key(draws), offsets)
        chances = uniform(draw_key(draws), items, 1)[:, 0]
        count = sum(ranks.counts), self._config.style
        noise = ranks.local(torch.randn(*count, generator=draws)).to(device)
        with part("frozen encoder"), torch.no_grad():
            embeddings = self._frozen.encode(batch.images).embeddings
            edited = embeddings + self._moved(labels, edits.targets)
            partner = all_labels[edits.positive]
            arrived = ranks.gather(embeddings)[edits.positive]
            arrived = arrived + self._moved(partner, labels)
            same = ((labels == UNKNOWN) == (partner == UNKNOWN)).all(1)
            chosen = edits.usable & same & (chances < self._config.exchange)
            source = arrived.where(chosen[:, None, None], embeddings)
        again = items % self._config.cycle_every == 0
        return Plan(noise, source, edited, edits.usable, again)

    def _moved(self, own: Tensor, target: Tensor) -> Tensor:
        """Return M i, (b, A, D), of an edit of labels (b, A)."""
        memory = self._frozen.memory
        return memory(multi_hot(target, self._schema)) - memory(multi_hot(own, self._schema))

    def encode(self, model: Any, plan: Plan, images: Tensor, rows: slice = slice(None)) -> Outputs:
        """As `Objective.encode`."""
        embeddings, edited = plan.embeddings[rows], plan.edited[rows]
        again = plan.again[rows].nonzero()[:, 0]
        with part("forward"):
            out = model(images[rows], embeddings, edited[again], again, plan.noise[rows])
        seen = torch.zeros_like(embeddings)
        if len(again):
            with part("frozen encoder"):
                drawn = out.edited_logits.sigmoid()
                found = see(self._frozen, drawn, self._config.shrink).embeddings
            seen = seen.index_copy(0, again, found)
        return Outputs(out.mean, out.log_variance, out.logits, seen)

    def terms(self, stage: Stage, out: Outputs, batch: Batch, plan: Plan) -> Terms:
        """As `Objective.terms`."""
        items = torch.full((1,), float(len(out.mean)), device=out.mean.device)
        usable = (plan.usable & plan.again).float()
        distance = (out.seen - plan.edited).abs().flatten(1).mean(1)
        pictures = as_drawn(batch.images, self._config.shrink)
        losses = {
            "reconstruction": Term(self._reconstruction(out.logits, pictures).sum()[None], items),
            "kl": Term(kl(out.mean, out.log_variance).sum()[None], items),
            "cycle": Term((distance * usable).sum()[None], usable.sum()[None]),
        }
        shares = {"edits": Term(plan.usable.float().sum()[None], items)}
        return Terms(losses, {**shares, **item_shares(batch, finite_rows(out))})

    def _reconstruction(self, logits: Tensor, pictures: Tensor) -> Tensor:
        if self._config.loss == "bce":
            return reconstruction(logits, pictures)
        return (logits.sigmoid() - pictures).abs().flatten(1).sum(1)
