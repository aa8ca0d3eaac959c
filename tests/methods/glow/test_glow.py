"""Glow's layers against autograd, and its likelihood against a known density."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from adde.errors import UserError
from adde.methods.glow.config import GlowConfig
from adde.methods.glow.directions import Regression, edited, read_directions, write_directions
from adde.methods.glow.layers import ActNorm, Convolution, LUConvolution
from adde.methods.glow.model import Flow, Forward, Glow, bits_per_dimension
from adde.schema import Attribute, Schema
from adde.training.config import Data


def config(**settings):
    return GlowConfig(**{"image_size": 8, "levels": 2, "steps": 2, "width": 6, **settings})


def moved(module, seed=0):
    """A module whose weights have all left their start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("convolution", ["plain", "lu"])
def test_the_log_determinant_is_that_of_autograds_jacobian(coupling, convolution, dtype, bound):
    torch.manual_seed(1)
    flow = moved(Flow(1, 4, config(coupling=coupling, convolution=convolution))).to(dtype)
    x = torch.randn(3, 1, 4, 4, dtype=dtype)
    latents, out = flow(x)
    for item in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one)[0], x[item : item + 1])
        # log p(x) = log N(latents; 0, 1) + log |det J|, whatever the priors are.
        density = -(latents[item] ** 2 + math.log(2 * math.pi)).sum() / 2
        expected = density + torch.linalg.slogdet(jacobian.view(16, 16))[1]
        found = out.volume[item, 0] + out.prior[item].sum()
        assert found.item() == pytest.approx(expected.item(), rel=bound, abs=bound)


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("convolution", ["plain", "lu"])
def test_the_inverse_undoes_the_flow(coupling, convolution):
    torch.manual_seed(1)
    flow = moved(Flow(3, 8, config(coupling=coupling, convolution=convolution)))
    x = torch.rand(5, 3, 8, 8) - 0.5
    with torch.no_grad():
        latents = flow(x)[0]
        assert latents.shape == (5, 3 * 8 * 8) and (latents[:, :48] - x.flatten(1)[:, :48]).any()
        assert (flow.inverse(latents) - x).abs().max() < 1e-4


@pytest.mark.parametrize("bits", [5, 8])
def test_a_picture_is_decoded_from_its_latents_to_the_last_bit(bits):
    torch.manual_seed(1)
    glow = Glow(config(bits=bits))
    moved(glow.flow.levels[0].prior)
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    with torch.no_grad():
        found = glow.decode(glow.encode(images))
    kept = (images.numpy() >> (8 - bits)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((found * (2**bits - 1)).round().numpy(), kept)


def test_a_uniform_density_costs_all_bits():
    flat = Forward(torch.zeros(2, 1), torch.zeros(2, 3))
    assert bits_per_dimension(flat, 5, 12).tolist() == pytest.approx([5, 5])


def test_a_correlated_gaussian_costs_its_entropy():
    torch.manual_seed(0)
    size = 32
    place = torch.arange(size)
    covariance = 0.8 ** (place[:, None] - place).abs().float()
    root = torch.linalg.cholesky(covariance)
    entropy = (size * math.log(2 * math.pi * math.e) + torch.logdet(covariance).item()) / 2
    flow = Flow(2, 4, config(levels=1, width=16, convolution="lu"))

    def draw(count):
        return (torch.randn(count, size) @ root.T).view(count, 2, 4, 4)

    def excess(items):
        out = flow(items)[1]
        nats = -(out.volume[:, 0] + out.prior.sum(1)).mean()
        return (nats - entropy) / (size * math.log(2))

    flow.start(draw(256))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    begun = excess(draw(1000)).item()
    for _ in range(400):
        optimizer.zero_grad()
        excess(draw(128)).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        assert begun > 0.5 and abs(excess(draw(4000))) < 0.05


def test_activation_norms_start_from_a_batch():
    torch.manual_seed(0)
    x = torch.randn(9, 3, 4, 4) * torch.tensor([0.1, 5, 0]).view(3, 1, 1) + 2
    norm = ActNorm(3)
    flow = nn.Sequential(norm)
    norm.starting = True
    y, volume = flow(x)
    np.testing.assert_allclose(y.mean((0, 2, 3)).detach(), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 2, 3), unbiased=False).detach(), [1, 1, 0], atol=1e-4)
    deviations = x.double().var((0, 2, 3), unbiased=False).sqrt()
    assert volume[0].item() == pytest.approx(-16 * deviations[:2].log().sum().item(), rel=1e-5)


def test_convolutions_start_as_rotations():
    for kind in (Convolution, LUConvolution):
        torch.manual_seed(3)
        made = kind(6)
        matrix = made.matrix().detach()
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(6), atol=1e-5, rtol=0)
        assert made.log_determinant().item() == pytest.approx(0, abs=1e-5)


SCHEMA = Schema((Attribute("a", ("x", "y", "z")), Attribute("b", ("p", "q"))))


def test_directions_are_a_ridge_regression():
    random = np.random.default_rng(0)
    labels = np.stack([random.integers(-1, 3, 50), random.integers(0, 2, 50)], axis=1)
    latents = random.normal(size=(50, 4))
    found = Regression(SCHEMA, 4, torch.device("cpu"))
    for rows in (slice(0, 20), slice(20, 50)):
        found.add(torch.tensor(latents[rows]), torch.tensor(labels[rows]))
    features = np.zeros((50, 6))
    features[:, 0] = 1
    for row, (a, b) in enumerate(labels):
        if a >= 0:
            features[row, 1 + a] = 1
        features[row, 4 + b] = 1
    # Ridge as least squares with five more rows, which pull all but the intercept to zero.
    rows = np.concatenate([features, np.sqrt(2.0) * np.eye(6)[1:]])
    expected, *_ = np.linalg.lstsq(rows, np.concatenate([latents, np.zeros((5, 4))]), rcond=None)
    np.testing.assert_allclose(found.solve(2.0), expected[1:], atol=1e-6)


def test_directions_of_independent_attributes_are_differences_of_means(tmp_path):
    labels = torch.cartesian_prod(torch.arange(3), torch.arange(2)).repeat(20, 1)
    torch.manual_seed(0)
    latents = torch.randn(len(labels), 5)
    found = Regression(SCHEMA, 5, torch.device("cpu"))
    found.add(latents, labels)
    directions = found.solve(1e-6)
    means = [latents[labels[:, 0] == value].mean(0) for value in range(3)]
    torch.testing.assert_close(directions[2] - directions[0], means[2] - means[0])
    write_directions(tmp_path, directions)
    read = read_directions(tmp_path)
    own, wanted = torch.tensor([[0, 1], [1, -1]]), torch.tensor([[2, 1], [1, 0]])
    changed = edited(torch.zeros(2, 5), read, own, wanted, SCHEMA)
    torch.testing.assert_close(changed, torch.stack([means[2] - means[0], torch.zeros(5)]))
    with pytest.raises(UserError, match="expected directions of attributes"):
        read_directions(tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 36, "levels": 3}, "multiple of 8 pixels.* found 36; use image_size = 32"),
        ({"image_size": 2, "levels": 2}, "multiple of 4 pixels.* found 2; use image_size = 4"),
        ({"bits": 9}, "bits: expected 1 to 8, found 9"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"ridge": 0.0}, "ridge: expected more than 0"),
        ({"data": Data(cached=True)}, "data.cached: expected false"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        config(**settings)
