"""The losses of the VAE family against plain loops and closed forms, and what settings refuse."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from adde.errors import UserError
from adde.loading.batch import Batch
from adde.methods.vae import losses
from adde.methods.vae.config import PUBLISHED_SIDE, Relevance, VAEConfig
from adde.methods.vae.evaluation import total_correlation
from adde.methods.vae.objective import VAEObjective
from adde.training.config import Data
from adde.training.method import find_method
from adde.training.recipes import read_recipe
from adde.training.terms import finite_rows
from tests.methods.vae.vae_cases import LATENTS, LOSSES, config, draws, items, model, one_step


def posteriors(count, latents=LATENTS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance, noise = (
        torch.randn(count, latents, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return mean, log_variance, mean + (log_variance / 2).exp() * noise


def test_kl_and_densities_are_those_of_gaussians():
    mean, log_variance, codes = posteriors(5)
    expected = [
        [
            torch.distributions.kl_divergence(
                torch.distributions.Normal(m, s.exp().sqrt()), torch.distributions.Normal(0.0, 1.0)
            ).item()
            for m, s in zip(row, spread)
        ]
        for row, spread in zip(mean, log_variance)
    ]
    np.testing.assert_allclose(losses.kl(mean, log_variance), expected)
    density = losses.log_density(codes, mean, log_variance)
    scale = np.exp(log_variance.numpy() / 2)
    wanted = stats.norm.logpdf(codes.numpy()[:, None], mean.numpy(), scale)
    np.testing.assert_allclose(density, wanted)


def test_total_correlation_is_minibatch_weighted_sampling_in_loops():
    mean, log_variance, codes = posteriors(6)
    data = 1000
    expected = []
    for code in codes.tolist():
        density = [
            [stats.norm.pdf(c, m, math.exp(s / 2)) for c, m, s in zip(code, row, spread)]
            for row, spread in zip(mean.tolist(), log_variance.tolist())
        ]
        whole = sum(math.prod(row) for row in density) / (data * 6)
        alone = [sum(row[latent] for row in density) / (data * 6) for latent in range(LATENTS)]
        expected.append(math.log(whole) - sum(map(math.log, alone)))
    found = losses.total_correlation(codes, mean, log_variance)
    np.testing.assert_allclose(found + (LATENTS - 1) * math.log(data * 6), expected)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_logged_total_correlation_has_its_constant(correlation):
    """Codes of a correlated Gaussian; its total correlation is -log(1 - c^2) / 2."""
    random = np.random.default_rng(0)
    covariance = [[1, correlation], [correlation, 1]]
    # Posteriors narrow against the whole, yet wide against the distance of neighbours.
    mean = random.multivariate_normal([0, 0], covariance, 4000)
    log_variance = np.full_like(mean, math.log(0.03))
    found = total_correlation(torch.tensor(mean), torch.tensor(log_variance))
    whole = np.array(covariance) + 0.03 * np.eye(2)
    expected = -0.5 * math.log(np.linalg.det(whole) / whole[0, 0] ** 2)
    assert found == pytest.approx(expected, abs=0.05)


def test_covariance_penalties():
    mean, log_variance, _ = posteriors(7)
    rows, spread = mean.numpy(), np.exp(log_variance.numpy())
    of_means = np.cov(rows, rowvar=False, bias=True)
    np.testing.assert_allclose(losses.covariance(mean), of_means)
    whole = of_means + np.diag(spread.mean(0))
    found = losses.covariance(mean, log_variance)
    np.testing.assert_allclose(found, whole)
    beside = sum(whole[i, j] ** 2 for i in range(LATENTS) for j in range(LATENTS) if i != j)
    assert losses.off_diagonal(found).item() == pytest.approx(beside)
    along = sum((whole[i, i] - 1) ** 2 for i in range(LATENTS))
    assert losses.diagonal(found).item() == pytest.approx(along)


def test_relevances_have_a_price_and_an_entropy():
    relevance = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert losses.price(relevance, 0.1, 10.0).tolist() == pytest.approx([10, 5.05, 0.1])
    assert losses.entropy(relevance).tolist() == pytest.approx([0, math.log(2), 0])


def plain_loss(settings, vae, count, step, steps):
    """The published losses (docs/vae.md), item by item, latent by latent, in float64."""
    vae = vae.double()
    images, _ = items(count)
    generator = draws()
    noise = torch.randn(count, LATENTS, generator=generator).double()
    pictures = images.permute(0, 3, 1, 2).double() / 255
    mean, spread = vae.encoder(pictures).chunk(2, dim=1)
    codes = mean + (spread / 2).exp() * noise
    logits = vae.decoder(codes)
    chance = logits.sigmoid()
    rec = -(pictures * chance.log() + (1 - pictures) * (1 - chance).log()).sum() / count
    rec = rec * (PUBLISHED_SIDE / settings.image_size) ** 2
    kl = [
        sum((mean[i, j] ** 2 + spread[i, j].exp() - spread[i, j] - 1) / 2 for i in range(count))
        / count
        for j in range(LATENTS)
    ]
    strength, name = settings.strength, settings.loss
    if name == "beta_vae":
        return rec + strength * sum(kl)
    if name == "annealed_vae":
        capacity = strength * min(1, step / settings.capacity_steps)
        return rec + settings.capacity_weight * abs(sum(kl) - capacity)
    if name == "beta_tcvae":
        normal = torch.distributions.Normal
        total = 0
        for j in range(count):
            density = torch.stack(
                [normal(mean[i], (spread[i] / 2).exp()).log_prob(codes[j]) for i in range(count)]
            )
            total += density.sum(1).logsumexp(0) - density.logsumexp(0).sum()
        return rec + sum(kl) + (strength - 1) * total / count
    if name.startswith("dip"):
        centred = mean - mean.mean(0)
        matrix = sum(torch.outer(row, row) for row in centred) / count
        if name == "dip_vae_ii":
            matrix = matrix + torch.diag(spread.exp().mean(0))
        own = 10 * strength if name == "dip_vae_i" else strength
        beside = sum(matrix[i, j] ** 2 for i in range(LATENTS) for j in range(LATENTS) if i != j)
        return rec + sum(kl) + strength * beside + own * sum((matrix.diag() - 1) ** 2)
    relevance = torch.ones(LATENTS).double()
    settled = 0.0
    if name == "rf_vae":
        relevance = vae.relevance_logits.sigmoid()
        own = settings.relevance
        ramp = (step / steps - own.grow_from) / (own.grow_until - own.grow_from)
        chaos = -(relevance * relevance.log() + (1 - relevance) * (1 - relevance).log())
        settled = ramp * (own.sparsity * relevance.sum() + own.entropy * chaos.sum())
    elif name == "rf_vae_0":
        relevance = torch.tensor(settings.relevance.given).double()
    if name != "factor_vae":
        low, high = settings.relevance.low, settings.relevance.high
        kl = [(high - (high - low) * r) * value for r, value in zip(relevance, kl)]
    half = count // 2
    order = torch.rand(count - half, LATENTS, generator=generator).argsort(0)
    seen = relevance * codes
    real, permuted = vae.discriminator(seen).unbind(1)
    judged = (real - permuted).mean()
    fixed = seen.detach()
    mixed = fixed[half:].clone()
    for i in range(len(mixed)):
        for j in range(LATENTS):
            mixed[i, j] = fixed[half + order[i, j], j]
    cross = nn.functional.cross_entropy
    first = cross(vae.discriminator(fixed[:half]), torch.zeros(half).long())
    second = cross(vae.discriminator(mixed), torch.ones(count - half).long())
    verdict = (first + second) / 2
    # The two players: what each one's own loss says of its own weights.
    return rec + sum(kl) + strength * judged + settled, verdict


@pytest.mark.parametrize("count", [16, 5])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_equal_plain_loops(loss, count):
    settings = config(loss, relevance={"grow_from": 0.1, "grow_until": 0.6})
    vae, plain = model(settings), model(settings)
    found, scalars = one_step(settings, vae, count)
    found.backward()
    expected = plain_loss(settings, plain, count, 10, 40)
    if isinstance(expected, tuple):
        players = [(n, p) for n, p in plain.named_parameters()]
        others = [p for n, p in players if not n.startswith("discriminator")]
        theirs = [p for n, p in players if n.startswith("discriminator")]
        own = torch.autograd.grad(expected[0], others, retain_graph=True)
        judge = torch.autograd.grad(expected[1], theirs)
        gradients = {id(p): g for p, g in zip([*others, *theirs], [*own, *judge])}
        expected = sum(expected)
    else:
        expected.backward()
        gradients = {id(p): p.grad for p in plain.parameters()}
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert scalars["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for (name, mine), other in zip(vae.named_parameters(), plain.parameters()):
        wanted = gradients[id(other)].float()
        scale = wanted.abs().max().item() + 1e-6
        torch.testing.assert_close(mine.grad, wanted, rtol=1e-4, atol=2e-5 * scale, msg=name)


def test_the_capacity_grows_and_then_stays():
    objective = VAEObjective(config("annealed_vae"))
    found = []
    for step in (0, 10, 40, 50):
        objective.begin_step(step, 60)
        found.append(objective.capacity)
    assert found == [0, 1.25, 5, 5]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 0, [1, 1, 1, 1]), (0.25, 0.75, [0, 0, 0.5, 1]), (0.5, 0.5, [0, 0, 1, 1])],
)
def test_the_weights_of_relevance_grow(start, end, expected):
    objective = VAEObjective(config("rf_vae", relevance={"grow_from": start, "grow_until": end}))
    found = []
    for step in (0, 10, 20, 39):
        objective.begin_step(step, 40)
        found.append(objective.growth)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_constant_code_has_a_finite_loss(loss):
    settings = config(loss)
    vae = model(settings)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
    found, scalars = one_step(settings, vae)
    found.backward()
    assert math.isfinite(found.item()) and not scalars["latent_kl"]
    assert all(p.grad.isfinite().all() for p in vae.parameters())


def test_a_batch_of_one_has_a_finite_beta_vae_and_the_others_refuse_it():
    settings = config("beta_vae", data=Data(batch_size=1))
    found, _ = one_step(settings, model(settings), count=1)
    assert math.isfinite(found.item())
    for loss in set(LOSSES) - {"beta_vae"}:
        with pytest.raises(UserError, match=r"data\.batch_size: expected at least 2 items"):
            config(loss, data=Data(batch_size=3, accumulation=3))


def test_an_item_that_is_not_finite_leaves_those_of_others_finite():
    settings = config("factor_vae")
    vae = model(settings)
    objective = VAEObjective(settings)
    images, labels = items(16)
    plan = objective.plan(settings.stage(), Batch(images, labels, []), draws())
    plan.noise[11] = math.nan  # of the half that is permuted
    good = finite_rows(objective.encode(vae, plan, images))
    assert good.tolist() == [item != 11 for item in range(16)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "beta_tcvea"}, "loss: .*'beta_tcvea'; did you mean 'beta_tcvae'"),
        ({"network": "study"}, "image_size: expected 64 of the network 'study', found 16"),
        ({"image_size": 40}, "image_size: expected a multiple of 16 pixels, found 40"),
        ({"latents": 0}, "latents: expected at least 1, found 0"),
        ({"data": Data(cached=True)}, "data.cached: expected false"),
        ({"relevance": {"grow_from": 1.5}}, "grow_until: expected shares"),
        ({"loss": "rf_vae_0", "latents": 4}, "relevance.given: expected 4 numbers of 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        config(**{"loss": "beta_vae", **settings})


def test_given_relevances_need_the_loss_that_reads_them():
    with pytest.raises(UserError, match="use loss = 'rf_vae_0'"):
        VAEConfig(loss="rf_vae", relevance=Relevance(given=(1.0,) * 10))


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'vae'"):
        find_method("vaee")


def test_a_recipe_with_an_unknown_loss_is_refused(tmp_path):
    (tmp_path / "recipe.toml").write_text('method = "vae"\nloss = "factorvae"\n')
    with pytest.raises(UserError, match="did you mean 'factor_vae'"):
        read_recipe(tmp_path / "recipe.toml")
