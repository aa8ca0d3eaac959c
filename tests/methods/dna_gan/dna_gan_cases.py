"""Small DNA-GANs, batches and steps that tests share."""

import numpy as np
import torch

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.methods.dna_gan.config import DNAGANConfig
from adde.methods.dna_gan.method import METHOD
from adde.methods.dna_gan.objective import DNAGANObjective
from adde.schema import UNKNOWN, Attribute, Schema
from adde.training.config import Data
from adde.training.terms import global_mean

SIDE = 16
SCHEMA = Schema(
    (
        Attribute("hat", ("none", "cap", "hood")),
        Attribute("sole", ("flat", "high")),
        Attribute("tint", ("red", "green", "blue")),
    )
)


def config(gan="hinge", **settings):
    return DNAGANConfig(
        **{
            "gan": gan,
            "classification": 0.0 if gan == "published" else 0.7,
            "attributes": ("hat", "tint"),
            "recessive": {"hat": "none"},
            "image_size": SIDE,
            "width": 4,
            "piece": 3,
            "rest": 2,
            "reconstruction": 5.0,
            "adversarial": 0.5,
            "data": Data(batch_size=12),
            **settings,
        }
    )


def model(settings, seed=0):
    torch.manual_seed(seed)
    return METHOD.build(settings, SCHEMA)


def items(count=12, seed=0):
    """Pictures, and labels of which some are unknown."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.stack([random.integers(0, size, count) for size in SCHEMA.sizes], axis=1)
    labels[random.random(labels.shape) < 0.1] = UNKNOWN
    return torch.from_numpy(images), torch.from_numpy(labels)


def draws(seed=3):
    return torch.Generator().manual_seed(seed)


def one_step(settings, wrapped, ranks=None, seed=0, step=7):
    """The scaled loss and the scalars of this rank's share of the global batch."""
    images, labels = items(seed=seed)
    ranks = ranks or RankRows((len(images),))
    objective, stage = DNAGANObjective(settings, SCHEMA), settings.stage()
    objective.begin_step(step, 40)
    batch = Batch(ranks.local(images), ranks.local(labels), [])
    terms = objective.batch_terms(stage, wrapped, batch, draws(seed), ranks)
    loss, scalars, _ = global_mean(terms, stage.weights)
    return loss, scalars
