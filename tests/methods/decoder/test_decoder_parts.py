"""The losses against plain loops, similarity of pictures, and edits drawn again."""

import math

import numpy as np
import pytest
import torch

from adde.edits import LabelEdits
from adde.errors import UserError
from adde.loading.batch import Batch
from adde.methods.adde.opening import FrozenEncoder
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.evaluation import obedience, one_of_each, psnr
from adde.methods.decoder.model import PictureDecoder
from adde.methods.decoder.objective import DecoderObjective
from adde.methods.decoder.structure import C1, C2, SIGMA, WINDOW, ssim
from adde.model import ModelSettings
from adde.preprocess import decode
from adde.schema import UNKNOWN
from adde.shards.catalogues.drawn.redraw import redraw
from adde.shards.catalogues.drawn.rooms import SCHEMA as ROOMS
from adde.shards.catalogues.drawn.rooms import render
from adde.shards.catalogues.drawn.wardrobe import wardrobe
from adde.training.method import Stage
from adde.training.terms import global_mean


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(1)
    config = DecoderConfig(style=3, width=4, exchange=1.0)
    return config, PictureDecoder(config, ModelSettings(image_size=32, width=6), 3)


def batch_of(count):
    draws = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=draws)
    labels = torch.stack(
        [torch.randint(0, size, (count,), generator=draws) for size in (3, 2, 2)], dim=1
    )
    labels[1, 2] = UNKNOWN
    return Batch(images, labels, [str(number) for number in range(count)])


def moved(model, own, target):
    """M v_target - M v_own of one item, in a loop over its labels."""
    change = torch.zeros(6, 3).T.contiguous()
    weight = model.memory.weight.detach().unflatten(0, (3, 6))
    for a, offset in enumerate(model.schema.offsets):
        if target[a] != UNKNOWN:
            change = change + weight[:, :, offset + target[a]]
        if own[a] != UNKNOWN:
            change = change - weight[:, :, offset + own[a]]
    return change


@pytest.mark.parametrize("loss", ["l1", "bce"])
def test_the_loss_equals_plain_loops(tiny_model, decoder, loss):
    config, model = decoder
    config = DecoderConfig(
        style=3, width=4, exchange=1.0, loss=loss, beta=0.5, cycle=7.0, cycle_every=3
    )
    objective = DecoderObjective(config, tiny_model.schema, FrozenEncoder(tiny_model, None, ""))
    batch, stage = batch_of(12), Stage("decoder", config.schedule, config.weights)
    plan = objective.plan(stage, batch, torch.Generator().manual_seed(3))
    terms = objective.terms(stage, out := objective.encode(model, plan, batch.images), batch, plan)
    found, scalars, _ = global_mean(terms, config.weights)

    edits = [(e.item(), p.item()) for e, p in zip(plan.usable, _positives(objective, batch))]
    embeddings = tiny_model.encode(batch.images).embeddings.detach()
    labels = batch.labels.tolist()
    reconstruction, divergence, cycle, count = 0.0, 0.0, 0.0, 0
    for i, (usable, j) in enumerate(edits):
        source = embeddings[i]
        same = all((a == UNKNOWN) == (b == UNKNOWN) for a, b in zip(labels[i], labels[j]))
        if usable and same:
            source = embeddings[j] + moved(tiny_model, labels[j], labels[i])
        mean, log_variance = (one[0] for one in model.style(batch.images[i : i + 1]))
        style = mean + torch.exp(log_variance / 2) * plan.noise[i]
        drawn = model.draw(source[None], style[None])[0].sigmoid()
        picture = batch.images[i].permute(2, 0, 1).double() / 255
        for one, other in zip(drawn.double().flatten().tolist(), picture.flatten().tolist()):
            if loss == "l1":
                reconstruction += abs(one - other) / 12
            else:
                cross = other * math.log(one) + (1 - other) * math.log(1 - one)
                reconstruction -= cross / 12
        for m, v in zip(mean.tolist(), log_variance.tolist()):
            divergence += (m * m + math.exp(v) - v - 1) / 2 / 12
        if usable and i % 3 == 0:
            both = [u != UNKNOWN and w != UNKNOWN for u, w in zip(labels[i], labels[j])]
            target = [w if known else u for u, w, known in zip(labels[i], labels[j], both)]
            edited = embeddings[i] + moved(tiny_model, labels[i], target)
            picture = model.draw(edited[None], style[None]).sigmoid() * 255
            distance = (tiny_model.encode(picture).embeddings[0] - edited).abs().mean()
            cycle, count = cycle + distance.item(), count + 1
    assert scalars["reconstruction"] == pytest.approx(reconstruction, rel=1e-4)
    assert scalars["kl"] == pytest.approx(divergence, rel=1e-4)
    assert scalars["cycle"] == pytest.approx(cycle / count, rel=1e-4)
    total = reconstruction + 0.5 * divergence + 7 * cycle / count
    assert found.item() == pytest.approx(total, rel=1e-4)
    # The encoder takes no gradient, and every weight of the decoder does.
    assert out.seen.requires_grad
    found.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def _positives(objective, batch):
    from adde.methods.adde.memory import first_columns
    from adde.mining import draw_edits, draw_key

    key = draw_key(torch.Generator().manual_seed(3))
    rows = torch.arange(len(batch.labels))
    offsets = first_columns(objective._schema, rows.device)
    return draw_edits(batch.labels, batch.labels, rows, key, offsets).positive


def test_only_the_direction_of_an_embedding_is_drawn(decoder):
    _, model = decoder
    embeddings, style = torch.randn(2, 3, 6), torch.randn(2, 3)
    torch.testing.assert_close(model.draw(embeddings, style), model.draw(5 * embeddings, style))


def test_psnr_and_ssim_equal_plain_loops():
    draws = torch.Generator().manual_seed(0)
    one = torch.rand(2, 3, 13, 12, generator=draws)
    other = (one + 0.2 * torch.randn(2, 3, 13, 12, generator=draws)).clamp(0, 1)
    for row in range(2):
        error = np.mean((one[row].numpy() - other[row].numpy()) ** 2)
        assert psnr(one, other)[row].item() == pytest.approx(10 * np.log10(1 / error), rel=1e-5)
    places = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(places[:, None] ** 2 + places**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for row in range(2):
        values = []
        for channel in range(3):
            x, y = (p[row, channel].double().numpy() for p in (one, other))
            for top in range(13 - WINDOW + 1):
                for left in range(12 - WINDOW + 1):
                    window = np.s_[top : top + WINDOW, left : left + WINDOW]
                    a, b = (weights * x[window]).sum(), (weights * y[window]).sum()
                    va = (weights * (x[window] - a) ** 2).sum()
                    vb = (weights * (y[window] - b) ** 2).sum()
                    shared = (weights * (x[window] - a) * (y[window] - b)).sum()
                    first = (2 * a * b + C1) / (a * a + b * b + C1)
                    values.append(first * (2 * shared + C2) / (va + vb + C2))
        assert ssim(one, other)[row].item() == pytest.approx(np.mean(values), rel=1e-4)
    assert ssim(one, one) == pytest.approx([1, 1])


def test_obedience_counts_edited_and_other_known_attributes():
    labels = np.array([[0, 1, UNKNOWN], [2, 0, 1]])
    values = np.array([[1, UNKNOWN, UNKNOWN], [UNKNOWN, 1, 0]])
    seen = np.array([[1, 0, 1], [2, 1, 1]])
    edits = LabelEdits(np.array([0, 1]), values)
    assert obedience(seen, edits, labels) == {"wanted": 2 / 3, "unchanged": 1 / 2}


def test_shown_edits_are_of_every_known_attribute(tiny_model):
    edits = one_of_each(np.array([1, UNKNOWN, 0]), tiny_model.schema, 7)
    assert edits.reference.tolist() == [7, 7, 7]
    assert (edits.values[0] == UNKNOWN).all()
    assert (edits.values[1:] != UNKNOWN).sum(axis=1).tolist() == [1, 1]
    assert edits.values[1, 0] in (0, 2) and edits.values[2, 2] == 1


def test_embedded_catalogues_are_drawn_again():
    figures = wardrobe(60, 0, 32)
    rows = [3, 41]
    ids, labels = [figures.item_ids[row] for row in rows], figures.labels[rows]
    stored = [np.asarray(decode(figures.source(row).read()[0])) for row in rows]
    again = redraw("wardrobe", ids, labels, 32)
    assert all(np.array_equal(one, other) for one, other in zip(stored, again))
    # Glasses change, and little else; a garment that the outfit hides cannot be drawn.
    glasses = figures.schema.attribute_index("glasses")
    changed = labels.copy()
    changed[:, glasses] = (changed[:, glasses] + 2) % 6
    for before, after in zip(stored, redraw("wardrobe", ids, changed, 32)):
        share = (before != after).any(axis=-1).mean()
        assert 0 < share < 0.2
    trousers = figures.schema.attribute_index("trousers_colour")
    row = int((figures.labels[:, trousers] != UNKNOWN).argmax())
    hidden = figures.labels[row : row + 1].copy()
    hidden[0, 0] = figures.schema.value_index("outfit", "dress")
    assert redraw("wardrobe", figures.item_ids[row : row + 1], hidden, 32) == [None]
    room = np.zeros((1, len(ROOMS.names)), np.int64)
    assert np.array_equal(redraw("rooms", ["x"], room, 16)[0], render(room, 16)[0])
    assert redraw("celeba", ids, labels, 32) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": 0}, "style: expected at least 1, found 0"),
        ({"exchange": 1.5}, r"exchange: expected a share of 0 to 1, found 1\.5"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(**settings)
