"""Small VAEs, batches and steps that tests share."""

import numpy as np
import torch

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.methods.vae.config import LOSSES, Discriminator, Relevance, VAEConfig
from adde.methods.vae.model import VAE
from adde.methods.vae.objective import VAEObjective
from adde.training.config import Data
from adde.training.terms import global_mean

LATENTS, SIDE = 3, 16


def config(loss, **settings):
    """A tiny VAE's."""
    given = (1.0, 0.25, 0.0) if loss == "rf_vae_0" else ()
    relevance = Relevance(given=given, **settings.pop("relevance", {}))
    return VAEConfig(
        **{
            "loss": loss,
            "strength": 5.0,
            "latents": LATENTS,
            "image_size": SIDE,
            "network": "small",
            "capacity_steps": 40,
            "discriminator": Discriminator(layers=2, width=7, rate=0.5),
            "relevance": relevance,
            "data": Data(batch_size=16),
            **settings,
        }
    )


def model(settings, seed=0):
    torch.manual_seed(seed)
    found = VAE(settings)
    with torch.no_grad():
        # Codes that differ from item to item, and relevances that are not all one half.
        found.encoder[-1].weight.mul_(3)
        if found.relevance_logits is not None:
            found.relevance_logits.copy_(torch.tensor([2.0, 0.3, -1.0]))
    return found


def items(count, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return torch.from_numpy(images), torch.zeros(count, 2, dtype=torch.int64)


def draws(seed=3):
    return torch.Generator().manual_seed(seed)


def one_step(settings, wrapped, count=16, ranks=None, step=10, flag=False):
    """The scaled loss and the scalars of one step on this rank's share of the global batch."""
    ranks = ranks or RankRows((count,))
    objective = VAEObjective(settings)
    objective.begin_step(step, 40)
    images, labels = items(count)
    batch = Batch(ranks.local(images), ranks.local(labels), [])
    stage = settings.stage()
    terms = objective.batch_terms(stage, wrapped, batch, draws(), ranks)
    loss, scalars, _ = global_mean(terms, stage.weights, flag)
    return loss, scalars


__all__ = ["LATENTS", "LOSSES", "SIDE", "config", "draws", "items", "model", "one_step"]
