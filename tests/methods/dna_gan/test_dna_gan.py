"""A DNA-GAN's exchange, its two players against an optimiser for each, and what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn import Conv2d, Linear
from torch.nn.utils import parametrize

from adde.distributed import RankRows
from adde.errors import UserError
from adde.loading.batch import Batch
from adde.methods.dna_gan.method import METHOD, require_two_values
from adde.methods.dna_gan.model import put
from adde.methods.dna_gan.networks import Critic
from adde.methods.dna_gan.objective import DNAGANObjective, draw_exchange
from adde.schema import UNKNOWN
from adde.shards.index import ShardIndex
from adde.training.config import Data, Optimizer
from adde.training.optimisation import build_optimizer, set_rate
from tests.methods.dna_gan.dna_gan_cases import SCHEMA, config, draws, items, model, one_step

STEPS, RATE = 6, 1e-3
RMSPROP = Optimizer(name="rmsprop", weight_decay=0.0)


def test_items_take_pieces_from_others_of_another_known_value():
    labels = torch.tensor([[0, 1], [1, 1], [UNKNOWN, 1], [0, UNKNOWN], [2, 1], [0, 1]])
    seen = set()
    for seed in range(60):
        attribute, donor, usable = (part.tolist() for part in draw_exchange(labels, draws(seed)))
        assert attribute.count(0) == attribute.count(1) == 3
        for item in range(6):
            column = labels[:, attribute[item]].tolist()
            others = [
                other
                for other in range(6)
                if column[other] != column[item] and UNKNOWN not in (column[other], column[item])
            ]
            assert usable[item] == bool(others)
            assert donor[item] in others if others else donor[item] == item
            seen.add((attribute[item], item, donor[item]))
    # Nobody differs in the second attribute; each possible donor of the first was drawn.
    assert {(item, donor) for attribute, item, donor in seen if attribute == 0} == {
        *((0, 1), (0, 4), (3, 1), (3, 4), (5, 1), (5, 4)),
        *((1, 0), (1, 3), (1, 5), (1, 4), (4, 0), (4, 3), (4, 5), (4, 1)),
        (2, 2),
    }


def test_recessive_pieces_are_zero_and_only_one_piece_is_replaced():
    gan = model(config())
    pieces = torch.arange(1.0, 19).view(3, 2, 3)
    labels = torch.tensor([[0, 0], [1, 0], [UNKNOWN, 2]])
    left = gan.annihilate(pieces, labels)
    assert not left[0, 0].any()
    torch.testing.assert_close(left[1:], pieces[1:])
    torch.testing.assert_close(left[0, 1], pieces[0, 1])
    mixed = put(pieces, torch.tensor([1, 0, 1]), -torch.ones(3, 3))
    expected = pieces.clone()
    expected[0, 1] = expected[1, 0] = expected[2, 1] = -1
    torch.testing.assert_close(mixed, expected)


def by_hand(settings, gan, seed, step):
    """Both players' own losses of a batch, item by item where they are not the networks'."""
    images, labels = items(seed=seed)
    labels = labels[:, [0, 2]]
    attribute, donor, usable = draw_exchange(labels, draws(seed))
    pictures = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    codes = gan.encoder(pictures)
    # Two pieces of three numbers, then the rest.
    codes = torch.stack(
        [torch.cat([0 * code[:3] if hat == 0 else code[:3], code[3:]])
         for code, (hat, _) in zip(codes, labels.tolist())]
    )  # fmt: skip
    mixed, targets = [], labels.clone()
    for item, (at, other) in enumerate(zip(attribute.tolist(), donor.tolist())):
        own = [codes[item, :3], codes[item, 3:6], codes[item, 6:]]
        own[at] = codes[other, 3 * at : 3 * at + 3]
        mixed.append(torch.cat(own))
        targets[item, at] = labels[other, at]
    decoded = gan.decoder(torch.cat([codes, torch.stack(mixed)]))
    first, swapped = decoded[:12], decoded[12:]
    under = targets if settings.judged_under == "target" else labels[donor]
    # An unknown label, -1, has no column.
    own, theirs = (F.one_hot(each + 1, 4)[..., 1:].flatten(1).float() for each in (labels, under))

    def classes(logits, wanted, weights):
        total = 0
        for column in range(2):
            part = logits[:, 3 * column : 3 * column + 3].log_softmax(1)
            rows = [r for r in range(12) if wanted[r, column] >= 0 and weights[r]]
            total = total - sum(part[r, wanted[r, column]] for r in rows) / len(rows)
        return total

    everyone = torch.ones(12)
    pairs = [(item, at) for item, at in enumerate(attribute.tolist()) if usable[item]]
    verdicts, logits = gan.discriminator(
        torch.cat([pictures, swapped.detach()]), torch.cat([own, theirs])
    )
    if settings.gan == "hinge":
        judge = sum(
            F.relu(1 - verdicts[i, at]) + F.relu(1 + verdicts[12 + i, at]) for i, at in pairs
        ) / len(pairs)
        judge = judge + 0.7 * classes(logits, labels, everyone)
    else:
        judge = sum(verdicts[12 + i, at] - verdicts[i, at] for i, at in pairs) / len(pairs)
    # The other player, for whom the discriminator is as it is.
    verdicts, logits = gan.discriminator(swapped, theirs)
    alone = settings.gan == "published" and step % settings.critic_every < settings.critic_steps
    other = 5 * (first - pictures).abs().mean() / 2
    other = other - 0.5 * sum(verdicts[i, at] for i, at in pairs) / len(pairs)
    if settings.gan == "hinge":
        other = other + 0.7 * classes(logits, targets, usable)
    return other * (0.0 if alone else 1.0), judge


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config(judged_under="donor"),
        config("published", critic_every=5, critic_steps=2, optimizer=RMSPROP),
    ],
    ids=["hinge", "donor", "published"],
)
def test_one_backward_pass_equals_an_optimiser_for_each_player(settings):
    ours = model(settings)
    plain = copy.deepcopy(ours)
    stage = settings.stage()
    optimizer = build_optimizer(settings.optimizer, ours, stage.rates)
    players = [*plain.encoder.parameters(), *plain.decoder.parameters()]
    judge = [*plain.discriminator.parameters()]
    reference = [
        torch.optim.RMSprop(weights, rate, alpha=0.8)
        if settings.gan == "published"
        else torch.optim.AdamW(weights, rate, (0.0, 0.9), weight_decay=0.0, fused=True)
        for weights, rate in ((players, RATE), (judge, settings.discriminator_rate * RATE))
    ]
    for step in range(STEPS):
        loss, _ = one_step(settings, ours, seed=step, step=step)
        optimizer.zero_grad()
        loss.backward()
        set_rate(optimizer, RATE)
        optimizer.step()
        if settings.gan == "published":
            for weights in judge:
                weights.data.clamp_(-0.01, 0.01)
        first, second = by_hand(settings, plain, step, step)
        gradients = torch.autograd.grad(first, players, retain_graph=True)
        theirs = torch.autograd.grad(second, judge)
        for weights, gradient in zip([*players, *judge], [*gradients, *theirs]):
            weights.grad = gradient.contiguous()  # the fused AdamW reads the storage
        for (name, mine), other in zip(ours.named_parameters(), plain.parameters()):
            # After a step, weights that differ in their last bits may stand on two sides of a kink.
            limit = (0.2 if step else 1e-4) * other.grad.abs().max()
            assert (mine.grad - other.grad).abs().max() <= limit + 1e-7, (step, name)
        for each in reference:
            each.step()
    begun = dict(model(settings).named_parameters())
    for (name, mine), other in zip(ours.named_parameters(), plain.parameters()):
        # A gradient of rounding alone moves a weight as far as any other, so means are compared.
        assert (mine - other).abs().mean() < 2e-4, name
        assert (mine - begun[name]).abs().max() > 1e-3, name


def test_the_discriminator_has_spectral_norm_and_the_critic_is_clipped():
    gan = model(config())
    normed = [part for part in gan.discriminator.modules() if parametrize.is_parametrized(part)]
    assert len(normed) == 6
    for _ in range(30):  # one power iteration each
        one_step(config(), gan)
    for part in normed:
        largest = torch.linalg.matrix_norm(part.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)
    settings = config("published")
    gan = model(settings)
    one_step(settings, gan)
    assert isinstance(gan.discriminator, Critic)
    for part in gan.discriminator.modules():
        if isinstance(part, Conv2d | Linear):
            assert 0.0099 < part.weight.abs().max() <= 0.01
    before = gan.eval().discriminator.verdicts.weight.data.fill_(1.0).clone()
    one_step(settings, gan)
    assert gan.discriminator.verdicts.weight.equal(before)


def test_an_item_that_is_not_finite_leaves_those_of_others_finite():
    settings = config()
    gan, objective = model(settings).eval(), DNAGANObjective(settings, SCHEMA)
    images, labels = items()
    plan = objective.plan(settings.stage(), Batch(images, labels, []), draws(), RankRows((12,)))
    images[5] = 255

    def broken(module, inputs, output):
        return output.where(inputs[0].flatten(1).min(1).values[:, None] < 1, torch.nan)

    gan.encoder.register_forward_hook(broken)
    out = objective.encode(gan, plan, images)
    assert out.reconstructed.flatten(1).isfinite().all(1).tolist() == [i != 5 for i in range(12)]
    assert out.swapped.flatten(1).isfinite().all(1).tolist() == [i != 5 for i in range(12)]


def test_codes_have_a_block_for_each_attribute():
    gan = model(config()).eval()
    images, _ = items(4)
    with torch.no_grad():
        codes = METHOD.codes(gan, images)["codes"]
        pieces, rest = gan.encode(images)
    assert METHOD.blocks(gan) == ("hat",) * 3 + ("tint",) * 3 + ("rest",) * 2
    np.testing.assert_array_equal(codes, torch.cat([pieces[:, 0], pieces[:, 1], rest], dim=1))
    gan = model(config(spatial=True)).eval()
    with torch.no_grad():
        maps, _ = gan.encode(images)
        assert maps.shape == (4, 2, 3, 2, 2)
        assert METHOD.codes(gan, images)["codes"].shape == (4, 8)
        assert gan.decode(*gan.encode(images)).shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 24}, "image_size: expected a multiple of 16 pixels.* found 24"),
        ({"piece": 0}, "piece: expected at least 1, found 0"),
        ({"gan": "published", "classification": 1.0}, "classification: expected 0"),
        ({"data": Data(cached=True)}, "data.cached: expected false"),
        ({"data": Data(batch_size=3, accumulation=3)}, "data.batch_size: expected at least 2"),
        ({"attributes": ("hats",)}, "unknown attribute 'hats'.*'hat'"),
        ({"recessive": {"hat": "nun"}}, "attribute 'hat': unknown value 'nun'.*'none'"),
        ({"recessive": {"sole": "flat"}}, "recessive: expected learned attributes.* found 'sole'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        model(config(**settings))


def test_sharded_weights_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=r"expected one process or DDP for 'dna_gan'.* found FSDP"):
        METHOD.build(config(), SCHEMA)
    METHOD.build(config(), SCHEMA, start=False)


def test_an_attribute_without_a_second_value_is_refused(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    require_two_values(index, index.schema.names)
    first = index.split("train")[0]
    # Its first three items have the three colours of one shape and border.
    few = replace(index, shards=(replace(first, samples=3),))
    require_two_values(few, ("colour",))
    with pytest.raises(UserError, match=r"attribute 'shape': expected at least two values.*'disc'"):
        require_two_values(few, ("colour", "shape"))
