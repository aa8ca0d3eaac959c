"""A rectified flow: its velocity is found, and edits go back and forth."""

import torch

from adde.methods.adde.opening import FrozenEncoder
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.flow import Draws, FlowDecoder, FlowObjective
from adde.methods.decoder.unet import ATTENDED, Velocity, waves
from adde.model import ModelSettings
from adde.training.method import Stage
from tests.methods.decoder.test_decoder_parts import batch_of

CONFIG = DecoderConfig(form="flow", style=3, width=8, steps=8, unconditional=0.25)


def flow():
    torch.manual_seed(1)
    made = FlowDecoder(CONFIG, ModelSettings(image_size=32, width=6), 3).eval()
    with torch.no_grad():  # it starts with no velocity at all
        made.velocity.last[-1].weight.normal_(std=0.02)
    return made


def test_the_error_is_that_of_the_straight_line():
    """With a velocity of zero it is the squared length of picture - noise."""
    made, batch = flow(), batch_of(4)
    with torch.no_grad():
        made.velocity.last[-1].weight.zero_()
        made.velocity.last[-1].bias.zero_()
    noise = torch.randn(4, 3, 32, 32)
    draws = Draws(torch.randn(4, 3), noise, torch.rand(4), torch.zeros(4, dtype=torch.bool))
    found = made(batch.images, torch.randn(4, 3, 6), draws).error[:, 0]
    pictures = batch.images.permute(0, 3, 1, 2).double() / 127.5 - 1
    expected = ((pictures - noise.double()) ** 2).sum((1, 2, 3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_a_constant_velocity_is_integrated_exactly():
    made = flow()
    moved = torch.randn(1, 3, 32, 32)
    made.velocity.forward = lambda x, times, tokens: moved.expand_as(x)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(made._integrated(x, torch.zeros(2, 4, 64), 1), x + moved)
    torch.testing.assert_close(made._integrated(x, torch.zeros(2, 4, 64), -1), x - moved)


def test_an_edit_changes_the_picture_and_none_gives_it_back():
    made = flow()
    pictures, style = torch.rand(2, 3, 32, 32), torch.randn(2, 3)
    own, edited = torch.randn(2, 2, 3, 6)
    with torch.no_grad():
        same = made.drawn(pictures, own, 3 * own, style)  # only the direction counts
        other = made.drawn(pictures, own, edited, style)
    assert (same - pictures).abs().mean() < 0.05
    assert (other - same).abs().max() > 1e-4


def test_dropped_items_are_told_nothing():
    made = flow()
    own, edited = torch.randn(2, 2, 3, 6)
    style, dropped = torch.randn(2, 3), torch.tensor([True, False])
    one, other = (made.tokens(e, style, dropped) for e in (own, edited))
    assert one[0].equal(other[0]) and not one[1].equal(other[1])


def test_draws_are_those_of_the_recipe(tiny_model):
    objective = FlowObjective(CONFIG, 32, FrozenEncoder(tiny_model, None, ""))
    stage = Stage("decoder", CONFIG.schedule, CONFIG.weights)
    found = objective.plan(stage, batch_of(400), torch.Generator().manual_seed(0)).draws
    assert 0.2 < found.dropped.float().mean() < 0.3
    # logit-normal: its logits are standard normal
    logits = found.times.logit()
    assert abs(logits.mean()) < 0.15 and abs(logits.std() - 1) < 0.15
    assert found.noise.shape == (400, 3, 32, 32)


def test_the_network_halves_the_side_and_attends_below():
    network, seen = Velocity(8), []
    for number, level in enumerate(network.down):
        level.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
        assert (level.attention is not None) == (number >= ATTENDED)
    tokens = torch.randn(2, 4, 64)
    assert network(torch.randn(2, 3, 32, 32), torch.rand(2), tokens).shape == (2, 3, 32, 32)
    assert seen == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (32, 4, 4)]
    assert waves(torch.rand(5), 8).shape == (5, 8)
