"""Terms of the objectives that other files do not look at, and what the recipe `paper` is."""

from pathlib import Path

import pytest
import torch
from torch import nn

from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.losses import normalise
from adde.methods.adde.config import AddeConfig, AddeStage
from adde.methods.adde.evaluation import prototypes
from adde.methods.adde.model import ADDE
from adde.methods.adde.objective import AddeObjective
from adde.mining import mine
from adde.model import ModelSettings
from adde.model.alexnet import AlexNet
from adde.schema import Attribute, Schema, label_of
from adde.training.recipes import read_recipe
from adde.training.terms import global_mean

LAST = AddeConfig().stages()[-1]
SCHEMA = Schema((Attribute("colour", ("r", "g", "b")), Attribute("size", ("s", "l"))))
RECIPES = Path(__file__).parents[3] / "train" / "recipes"


def build(**options):
    torch.manual_seed(0)
    settings = ModelSettings(backbone="test_resnet", image_size=32, width=4, hidden=6)
    model = ADDE(settings, SCHEMA, **options)
    model.backbone = nn.Sequential(
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 96), nn.Tanh()
    )
    nn.init.normal_(model.memory.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def model():
    return build()


def batch():
    """Six items that all can be edited, one without labels, and two of one row."""
    labels = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [-1, 1], [-1, -1], [0, 0]])
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (len(labels), 32, 32, 3), generator=random, dtype=torch.uint8)
    return Batch(images, labels, [])


def test_edited_queries_are_mined_with_the_items_under_joint_labels(model):
    items = batch()
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5, edited_triplets=True)
    plan = objective.plan(LAST, items, torch.Generator().manual_seed(3))
    out = objective.encode(model, plan, items.images)
    term = objective.terms(LAST, out, items, plan).losses["edited_triplet"]

    usable = plan.edits.usable.tolist()
    assert not all(usable) and sum(usable) >= 6
    rows = [*items.labels.tolist(), *plan.edits.targets.tolist()]
    ids = [-1 if max(row) < 0 else 10 * (row[0] + 1) + row[1] + 1 for row in rows]
    ids = [i if real else -1 for i, real in zip(ids, [True] * len(items.labels) + usable)]
    vectors = torch.cat([out.embeddings, out.edited]).flatten(1)
    expected = mine(normalise(vectors)[None], torch.tensor([ids]), margin=0.5, impl="reference")
    assert term.counts.item() == expected.pairs.item() > 10
    torch.testing.assert_close(term.sums, expected.loss_sum)
    gradient = torch.autograd.grad(term.sums.sum(), model.memory.weight, retain_graph=True)[0]
    assert gradient.any()  # the edited query is pulled, not only what it is compared with


def test_the_term_is_there_only_where_it_was_asked_for(model):
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    terms = objective.batch_terms(LAST, model, batch(), torch.Generator().manual_seed(3))
    assert "edited_triplet" not in terms.losses
    more = AddeObjective(SCHEMA, Augmentation(), margin=0.5, edited_triplets=True)
    terms = more.batch_terms(LAST, model, batch(), torch.Generator().manual_seed(3))
    _, scalars, _ = global_mean(terms, AddeStage(edited_triplet=2.0).weights)
    _, without, _ = global_mean(terms, LAST.weights)
    assert scalars["loss"] == pytest.approx(without["loss"] + 2 * scalars["edited_triplet"])


@pytest.mark.parametrize("name", ["paper", "paper_resnet18"])
def test_the_recipe_of_the_publication_is_what_it_says(name):
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert (recipe.model.width, recipe.model.hidden) == (340, 340)
    stage = recipe.adde
    assert (stage.local_triplet, stage.global_triplet, stage.edited_triplet) == (0, 0, 1)
    assert (stage.cls, stage.compositional, stage.consistency, stage.memory) == (0.2, 1, 1, 0.4)


def test_alexnet_ends_before_its_last_relu():
    torch.manual_seed(0)
    with torch.no_grad():
        features = AlexNet().eval()(torch.randn(2, 3, 63, 63))
    assert features.shape == (2, 4096)
    assert 0.2 < (features < 0).float().mean() < 0.8


MARKED = Schema((Attribute("colour", ("r", "g", "b"), multiple=True), SCHEMA.attributes[1]))


def losses_of(model, schema, items, stage=LAST):
    objective = AddeObjective(schema, Augmentation(), margin=0.5, edited_triplets=True)
    terms = objective.batch_terms(stage, model, items, torch.Generator().manual_seed(3))
    weights = AddeStage(edited_triplet=1.0).weights if stage is LAST else stage.weights
    return global_mean(terms, weights)


def test_the_mark_alone_changes_no_loss(model):
    for stage in AddeConfig().stages():
        _, plain, _ = losses_of(model, SCHEMA, batch(), stage)
        _, marked, _ = losses_of(model, MARKED, batch(), stage)
        assert marked == pytest.approx(plain, rel=1e-6)


def test_sets_are_learnt_from(model):
    items = batch()
    items.labels[0, 0], items.labels[3, 0] = label_of([0, 2]), label_of([0, 1, 2])
    for stage in AddeConfig().stages():
        loss, scalars, _ = losses_of(model, MARKED, items, stage)
        assert torch.isfinite(loss) and scalars["nonfinite"] == 0
    assert scalars["usable_edits"] > 0.5
    gradient = torch.autograd.grad(loss, model.memory.weight)[0]
    assert gradient.isfinite().all() and gradient.any()
    objective = AddeObjective(MARKED, Augmentation(), margin=0.5)
    plan = objective.plan(LAST, items, torch.Generator().manual_seed(3))
    out = objective.encode(model, plan, items.images)
    columns = model.memory.weight.T.unflatten(1, (2, 4))
    expected = (columns[0] + columns[2]) / 2 + columns[3]
    torch.testing.assert_close(out.own_prototypes[0], expected)


def test_an_item_counts_for_each_of_its_values(model):
    items = batch()
    sets = [[0, 2], [1], [], [0, 1, 2], [2], [1], [], [0]]
    items.labels[:, 0] = torch.tensor([label_of(each) for each in sets])

    class Once:
        device = torch.device("cpu")

        def batches(self, model, split):
            yield items, torch.arange(8)

    known = ADDE(model.settings, MARKED).eval()
    found, counts = prototypes(Once(), known)
    embeddings = known.encode(items.images).embeddings
    for value in range(3):
        rows = [row for row, each in enumerate(sets) if value in each]
        assert counts[value] == len(rows)
        torch.testing.assert_close(found[value], embeddings[rows, 0].mean(0))
    rows = [row for row, label in enumerate(items.labels[:, 1].tolist()) if label == 1]
    torch.testing.assert_close(found[4], embeddings[rows, 1].mean(0))
