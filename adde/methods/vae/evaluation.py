"""Evaluation of a VAE without labels: its outputs on a split, metrics, and pictures."""

import numpy as np
import torch
from torch import Tensor

from adde.methods.pictures import line, scaled, spread_items
from adde.methods.vae import losses
from adde.methods.vae.model import VAE
from adde.mining.distances import full_precision
from adde.shards.index import ShardIndex
from adde.training.evaluation import EncodedSplit
from adde.training.watching.displays import PictureRow

ACTIVE = 0.1
"""Mean KL in nats above which a latent counts as active."""

RELEVANT = 0.5
"""Relevance above which a latent counts as relevant."""

MIXTURE = 1000
"""Items whose posteriors make the mixture of the total correlation."""

SHOWN = 10
"""Pictures of a line."""

REACH = 2.0
"""Traversals go so many standard deviations of the prior to both sides."""


def represent(model: VAE, images: Tensor) -> dict[str, Tensor]:
    """Means and log-variances (b, L), and the nats (b,) of the reconstruction from the means."""
    out = model(images)
    nats = losses.reconstruction(out.logits, scaled(images, model.channels))
    return {"mean": out.mean, "log_variance": out.log_variance, "reconstruction": nats}


def figures(model: VAE, encoded: EncodedSplit) -> dict[str, float]:
    """Figures of a split, in nats per picture.

    `reconstruction` (from the mean code), `kl`, `elbo` = -(reconstruction + kl), `kl/z<l>`, the
    number of `active` latents, and of RF-VAE `relevance/z<l>` and the number of `relevant` ones.
    `total_correlation` is that of codes drawn from the mixture of the posteriors of MIXTURE items,
    its constant included: log q(z) - sum_l log q(z_l).
    """
    mean, log_variance = (torch.from_numpy(encoded.outputs[n]) for n in ("mean", "log_variance"))
    nats = losses.kl(mean, log_variance).mean(0).tolist()
    found = {"reconstruction": float(encoded.outputs["reconstruction"].mean()), "kl": sum(nats)}
    found["elbo"] = -(found["reconstruction"] + found["kl"])
    found["total_correlation"] = total_correlation(mean, log_variance)
    found["active"] = float(sum(value > ACTIVE for value in nats))
    found |= {f"kl/z{latent}": value for latent, value in enumerate(nats)}
    if model.relevance is not None:
        relevance = model.relevance.tolist()
        found["relevant"] = float(sum(value > RELEVANT for value in relevance))
        found |= {f"relevance/z{latent}": value for latent, value in enumerate(relevance)}
    return found


def total_correlation(mean: Tensor, log_variance: Tensor) -> float:
    """In nats, of codes drawn once from each of at most MIXTURE posteriors spread over (N, L)."""
    some = torch.linspace(0, len(mean) - 1, min(MIXTURE, len(mean))).long()
    mean, log_variance = mean[some], log_variance[some]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    codes = mean + (log_variance / 2).exp() * noise
    found = losses.total_correlation(codes, mean, log_variance).mean()
    return float(found + (mean.shape[1] - 1) * np.log(len(mean)))


@torch.no_grad()
def picture_rows(model: VAE, index: ShardIndex, split: str, rows: int) -> list[PictureRow]:
    """Reconstructions of SHOWN items of a split, then up to `rows` - 1 of them with every latent
    moved in turn, the one of the largest mean KL over these items first.
    """
    if not rows:
        return []
    images, _ = spread_items(model.preprocess, index, split, SHOWN)
    images = images.to(next(model.parameters()).device)
    # Outside of an evaluator's batches nothing else has switched training's modes off.
    was_training = model.training
    model.eval()
    with full_precision(images):
        out = model(images)
        nats = losses.kl(out.mean, out.log_variance).mean(0)
        order = nats.argsort(descending=True).tolist()
        originals = line(scaled(images, model.channels))
        found = [
            PictureRow(
                "Reconstructions",
                originals[0][0],
                {"pictures": originals, "from codes": line(out.logits.sigmoid())},
            )
        ]
        steps = torch.linspace(-REACH, REACH, SHOWN, device=images.device)
        for item in range(min(rows - 1, len(images))):
            lines: dict[str, list[tuple[bytes, bool]]] = {}
            for latent in order:
                codes = out.mean[item].repeat(SHOWN, 1)
                codes[:, latent] = steps
                moved = line(model.decode(codes).sigmoid())
                lines[_name(model, latent, nats[latent].item())] = moved
            found.append(PictureRow(f"Latents moved, item {item + 1}", originals[item][0], lines))
    model.train(was_training)
    return found


def _name(model: VAE, latent: int, nats: float) -> str:
    relevance = model.relevance
    end = "" if relevance is None else f", r {relevance[latent].item():.2f}"
    return f"z{latent}, {nats:.1f} nats{end}"
