"""GradCache computes the gradients of a batch that is encoded at once."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.methods.adde.config import AddeConfig, AddeStage, EncoderStage
from adde.methods.adde.model import ADDE, Forward
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.config import Config, Data
from adde.training.gradient_cache import cached_backward
from adde.training.strategies import DataParallel
from adde.training.terms import global_mean

SCHEMA = Schema((Attribute("colour", ("r", "g", "b")), Attribute("size", ("s", "l"))))
ITEMS = 12
STAGES = {
    s.name: s
    for s in AddeConfig(
        encoder=EncoderStage(adversary=0.5),
        adde=AddeStage(global_triplet=0.5, score=0.5, adversary=0.5),
    ).stages()
}
OBJECTIVE = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
OBJECTIVE.begin_step(2, 10)


def build(dropout=0.0, norm=False):
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone="test_resnet", image_size=32, width=4, hidden=6, dropout=dropout
    )
    model = ADDE(settings, SCHEMA, adversary=True)
    if not norm:  # batch norms see micro-batches in both cases
        model.backbone = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 96), nn.Tanh()
        )
    nn.init.normal_(model.memory.weight, std=0.1)
    return model


def batch():
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (ITEMS, 32, 32, 3), generator=random, dtype=torch.uint8)
    labels = [torch.randint(-1, size, (ITEMS,), generator=random) for size in SCHEMA.sizes]
    return Batch(images, torch.stack(labels, 1), [])


def draws():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def cached(accelerator, stage, parts, **options):
    model = build(**options)
    model.memory.requires_grad_(stage == "adde")
    strategy = DataParallel(accelerator, model, Config(data=Data(accumulation=parts)))
    torch.manual_seed(7)
    scalars, flag = cached_backward(
        strategy, OBJECTIVE, STAGES[stage], batch(), draws(), parts, flag=True
    )
    assert flag
    return model, scalars


def same_gradients(model, expected):
    found = 0
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            found += parameter.grad.any().item()
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)
    assert found >= 8


@pytest.mark.parametrize("parts", [1, 3, 12])
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_and_figures_equal_the_plain_batch(accelerator, stage, parts):
    expected = build()
    expected.memory.requires_grad_(stage == "adde")
    terms = OBJECTIVE.batch_terms(STAGES[stage], expected, batch(), draws())
    loss, scalars, _ = global_mean(terms, STAGES[stage].weights)
    loss.backward()
    model, found = cached(accelerator, stage, parts)
    same_gradients(model, expected)
    assert found == pytest.approx(scalars, rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_dropout_and_batch_norms_are_those_of_one_graph_over_all_parts(accelerator, stage):
    expected = build(dropout=0.3, norm=True)
    expected.memory.requires_grad_(stage == "adde")
    items, rows = batch(), [slice(0, 4), slice(4, 8), slice(8, 12)]
    plan = OBJECTIVE.plan(STAGES[stage], items, draws())
    outputs = []
    for part, some in enumerate(rows):
        torch.manual_seed(7 + part)
        outputs.append(OBJECTIVE.encode(expected, plan, items.images, some))
    whole = Forward(
        *(None if v[0] is None else torch.cat(v) if v[0].ndim else v[0] for v in zip(*outputs))
    )
    terms = OBJECTIVE.terms(STAGES[stage], whole, items, plan)
    global_mean(terms, STAGES[stage].weights)[0].backward()
    model, _ = cached(accelerator, stage, 3, dropout=0.3, norm=True)
    same_gradients(model, expected)
    for name, buffer in model.named_buffers():  # running statistics moved once per part
        torch.testing.assert_close(buffer, dict(expected.named_buffers())[name], msg=name)


def test_accumulation_without_the_cache_mines_fewer_pairs():
    """Check the numbers in docs/scaling.md with plain loops."""
    model, items = build(), batch()
    labels = items.labels

    def pairs(rows):
        """Count pairs of equal known labels per attribute, of anchors that have a negative."""
        total = 0
        for column in labels[rows].T.tolist():
            for i, one in enumerate(column):
                if one != -1 and any(other not in (-1, one) for other in column):
                    total += sum(j != i and other == one for j, other in enumerate(column))
        return total

    def mined(rows):
        part = Batch(items.images[rows], labels[rows], [])
        terms = OBJECTIVE.batch_terms(STAGES["encoder"], model, part, draws())
        counts = terms.shares["pairs_local"]
        return (counts.sums.sum() / counts.counts).item() * len(part.labels)

    whole = mined(slice(None))
    parts = [mined(slice(i, i + 4)) for i in (0, 4, 8)]
    assert whole == pytest.approx(pairs(slice(None)))
    assert sum(parts) == pytest.approx(sum(pairs(slice(i, i + 4)) for i in (0, 4, 8)))
    assert 0 < sum(parts) < whole
