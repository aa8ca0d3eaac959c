"""Two ranks against one, and one optimiser for two players against an optimiser for each."""

import copy
import math

import pytest
import torch
from torch import nn

from adde.distributed import RankRows
from adde.loading.batch import Batch
from adde.methods.vae import losses
from adde.methods.vae.objective import VAEObjective
from adde.training.optimisation import build_optimizer, set_rate
from adde.training.terms import global_mean
from tests.methods.ranks import on_ranks
from tests.methods.vae.vae_cases import LATENTS, LOSSES, config, draws, items, model, one_step

ITEMS, STEPS, RATE = 16, 20, 1e-3


def of_ranks(counts, rank):
    """Scalars and gradients of every loss, and weights after steps of FactorVAE, on one rank."""
    found = {}
    for loss in LOSSES:
        settings = config(loss)
        vae = model(settings)
        wrapped = nn.parallel.DistributedDataParallel(vae) if len(counts) > 1 else vae
        total, scalars = one_step(settings, wrapped, ITEMS, RankRows(counts), flag=rank == 0)
        total.backward()
        gradients = {n: p.grad.numpy() for n, p in vae.named_parameters()}
        found[loss] = scalars, gradients
    return found, [w.detach().numpy() for w in trained(counts).parameters()]


def trained(counts=(ITEMS,)):
    """FactorVAE after STEPS steps by one backward pass and one optimiser each."""
    settings = config("factor_vae")
    stage, objective, vae = settings.stage(), VAEObjective(settings), model(settings)
    wrapped = nn.parallel.DistributedDataParallel(vae) if len(counts) > 1 else vae
    optimizer = build_optimizer(settings.optimizer, vae, stage.rates)
    ranks = RankRows(counts)
    for step in range(STEPS):
        images, labels = items(ITEMS, seed=step)
        batch = Batch(ranks.local(images), ranks.local(labels), [])
        terms = objective.batch_terms(stage, wrapped, batch, draws(step), ranks)
        loss, _, _ = global_mean(terms, stage.weights)
        loss.backward()
        set_rate(optimizer, RATE)
        optimizer.step()
        optimizer.zero_grad()
    return vae


COUNTS = [(11, 5), pytest.param((8, 8), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=COUNTS, ids=str)
def two(request):
    return on_ranks(of_ranks, request.param)


@pytest.fixture(scope="module")
def one():
    return of_ranks((ITEMS,), 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_equal_one_rank(loss, one, two):
    (expected, wanted), (scalars, gradients) = one[0][loss], two[0][loss]
    assert scalars == pytest.approx(expected, rel=2e-6, abs=2e-6)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        scale = abs(wanted[name]).max()
        assert abs(gradient - wanted[name]).max() <= 5e-6 * scale + 1e-7, name


def test_two_players_on_two_ranks_end_as_on_one(one, two):
    apart = max(abs(a - b).max() for a, b in zip(one[1], two[1]))
    assert apart < 1e-5


def test_one_backward_pass_and_one_optimiser_equal_two():
    """The reference: each player's loss, gradient and AdamW by itself, one after the other."""
    settings = config("factor_vae")
    plain = model(settings)
    judge = copy.deepcopy(plain.discriminator)
    players = [plain.encoder, plain.decoder]
    decay = settings.optimizer.weight_decay

    def adam(modules, rate, betas):
        matrices = [p for m in modules for p in m.parameters() if p.ndim > 1]
        others = [p for m in modules for p in m.parameters() if p.ndim == 1]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, rate, betas, weight_decay=decay, fused=True)

    first = adam(players, RATE, (0.9, 0.999))
    second = adam([judge], RATE * settings.discriminator.rate, (0.5, 0.9))
    half, pixels = ITEMS // 2, (64 / settings.image_size) ** 2
    for step in range(STEPS):
        images, _ = items(ITEMS, seed=step)
        generator = draws(step)
        noise = torch.randn(ITEMS, LATENTS, generator=generator)
        order = torch.rand(half, LATENTS, generator=generator).argsort(0)
        pictures = images.permute(0, 3, 1, 2).float() / 255
        mean, spread = plain.encoder(pictures).chunk(2, dim=1)
        codes = mean + (spread / 2).exp() * noise
        rec = losses.reconstruction(plain.decoder(codes), pictures).mean()
        verdict = judge(codes)
        judged = (verdict[:, 0] - verdict[:, 1]).mean()
        kl = losses.kl(mean, spread).sum(1).mean()
        (pixels * rec + kl + settings.strength * judged).backward()
        judge.zero_grad()  # the encoder's loss moves the encoder alone
        fixed = codes.detach()
        mixed = fixed[half:].gather(0, order)
        real, permuted = (judge(c).log_softmax(1) for c in (fixed[:half], mixed))
        (-(real[:, 0].mean() + permuted[:, 1].mean()) / 2).backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
    found = trained()
    apart = [
        (a - b).abs().max().item()
        for one, other in zip(
            (found.encoder, found.decoder, found.discriminator), (*players, judge)
        )
        for a, b in zip(one.parameters(), other.parameters())
    ]
    assert max(apart) < 1e-6 and math.isfinite(sum(apart))
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(
            found.discriminator.parameters(), model(settings).discriminator.parameters()
        )
    ]
    assert min(moved) > 1e-4
