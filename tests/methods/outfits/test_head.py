"""Both forms make the mean over an outfit's items one query."""

import numpy as np
import pytest
import torch

from adde.methods.adde.opening import digest
from adde.methods.outfits.evaluation import HeadScorer
from adde.methods.outfits.model import Bilinear, Distance, Question, subspaces
from adde.outfits import BilinearScorer
from adde.schema import Attribute, Schema

SCHEMA = Schema(
    (
        Attribute("colour", ("red", "green", "blue")),
        Attribute("category", ("top", "shoes", "hat", "bag")),
    )
)
CATEGORIES, WIDTH, PROJECTED, ITEMS = 4, 5, 3, 40


def drawn(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def categories():
    return torch.randint(CATEGORIES, (ITEMS,), generator=drawn(1))


@pytest.fixture
def values():
    return torch.rand(ITEMS, SCHEMA.num_values, generator=drawn(2))


@pytest.fixture
def bilinear():
    head = Bilinear(SCHEMA, 1)
    head.begin(torch.randn(head.table.shape, generator=drawn(3)))
    return head


def distance(by_category):
    torch.manual_seed(4)
    return Distance(SCHEMA, 1, WIDTH, PROJECTED, by_category)


def questions(features, categories):
    """Outfits of one to five items, padded, each with candidates of one category."""
    sizes, longest = [1, 3, 5, 2], 5
    rows = torch.randint(ITEMS, (len(sizes), longest), generator=drawn(5))
    there = torch.arange(longest) < torch.tensor(sizes)[:, None]
    target = torch.tensor([0, 3, 2, 1])
    candidates = torch.stack([torch.arange(ITEMS)[categories == t][:4] for t in target.tolist()])
    question = Question(features[rows], categories[rows].where(there, -1), target)
    outfits = [row[mask].tolist() for row, mask in zip(rows, there)]
    return question, candidates, outfits


@torch.no_grad()
def test_a_bilinear_query_is_the_mean_over_pairs(bilinear, values, categories):
    question, candidates, outfits = questions(values, categories)
    found = bilinear(question, values[candidates]).scores
    table = bilinear.table.double()
    for b, outfit in enumerate(outfits):
        for k, candidate in enumerate(candidates[b].tolist()):
            pairs = [
                values[i].double()
                @ table[categories[i], categories[candidate]]
                @ values[candidate].double()
                for i in outfit
            ]
            assert float(found[b, k]) == pytest.approx(float(sum(pairs)) / len(pairs), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("by_category", [False, True])
def test_a_distance_query_is_the_mean_over_pairs(by_category, categories):
    head = distance(by_category)
    features = subspaces(torch.randn(ITEMS, 2, WIDTH, generator=drawn(6)))
    question, candidates, outfits = questions(features, categories)
    found = head(question, features[candidates]).scores
    eye = torch.eye(CATEGORIES)

    def embedded(item, weights):
        """[w_1 F_1 r_1, ..., w_A F_A r_A]."""
        which = int(categories[item]) if by_category else 0
        parts = [features[item, a] @ head.projections[which, a] for a in range(2)]
        return torch.cat([w * part for w, part in zip(weights, parts)])

    for b, outfit in enumerate(outfits):
        for k, candidate in enumerate(candidates[b].tolist()):
            distances = []
            for item in outfit:
                hot = torch.cat([eye[categories[item]], eye[categories[candidate]]])
                weights = head.attention(hot).softmax(0)
                offset = embedded(item, weights) - embedded(candidate, weights)
                distances.append(float(offset.double().square().sum()))
            assert float(found[b, k]) == pytest.approx(-np.mean(distances), abs=1e-5)


@torch.no_grad()
def test_a_trained_table_scores_as_the_ground_layer_does(bilinear, values, categories):
    mine = HeadScorer(bilinear, values, categories.numpy())
    theirs = BilinearScorer(values.numpy(), categories.numpy(), bilinear.table.numpy())
    outfit, candidates = np.array([3, 8, 9]), np.arange(ITEMS)
    np.testing.assert_allclose(
        mine.complete(outfit, candidates), theirs.complete(outfit, candidates), atol=1e-5
    )


@torch.no_grad()
def test_drift_is_the_squared_distance_from_the_start(bilinear):
    assert bilinear.drift() == 0
    bilinear.table[0, 1, 2, 3] += 3.0
    assert float(bilinear.drift()) == pytest.approx(9.0, rel=1e-5)


def test_a_hash_is_kept_as_bytes():
    sha256 = "0aff" + "00" * 30
    assert bytes(digest(sha256).tolist()).hex() == sha256
