"""The embedded catalogue of outfits: its items, pictures and oracle."""

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from test_importers import build

from adde.errors import UserError
from adde.outfits import (
    BilinearScorer,
    RandomScorer,
    SimilarityScorer,
    cooccurrence,
    fill_in_the_blank,
    outfit_figures,
)
from adde.schema import UNKNOWN
from adde.shards.benchmark_lists import write_benchmark
from adde.shards.catalogues.drawn.voxel import COLOURS
from adde.shards.catalogues.drawn.wardrobe_outfits import (
    CATEGORIES,
    COLOURED,
    KINDS,
    PARTS,
    SCHEMA,
    Garment,
    _look,
    style_tables,
    wardrobe_outfits,
)
from adde.shards.index import SPLITS, ShardIndex
from adde.shards.outfit_lists import read_outfits
from adde.shards.reader import iterate


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A catalogue of 10,000 items, and the questions about its test split as read from disk."""
    catalogue = wardrobe_outfits(10_000, seed=1)
    folder = tmp_path_factory.mktemp("outfits")
    write_benchmark(folder, catalogue.benchmark, SCHEMA)
    found = read_outfits(folder, SCHEMA, "test", catalogue.item_ids, catalogue.labels)
    return catalogue, found


def picture(category, colour, kind, seed, size=64):
    content, ending = Garment(category, _look(category, colour, kind), seed, size).read()
    assert ending == "png"
    return np.asarray(Image.open(io.BytesIO(content)))


def rgb(colour):
    return np.array([int(COLOURS[colour][at : at + 2], 16) for at in (1, 3, 5)])


def test_a_larger_catalogue_begins_with_the_smaller():
    small, large = wardrobe_outfits(300), wardrobe_outfits(900)
    count = len(small.item_ids)
    assert 295 < count <= 300
    assert large.item_ids[:count] == small.item_ids
    assert (large.labels[:count] == small.labels).all()
    assert large.splits[:count] == small.splits
    train = small.benchmark.outfits["train"]
    assert large.benchmark.outfits["train"][: len(train)] == train
    assert small.source(7) == large.source(7)
    assert (wardrobe_outfits(300, seed=1).labels[:50] != small.labels[:50]).any()


def test_outfits_are_whole_and_no_item_is_in_two(large):
    catalogue, _ = large
    split_of = dict(zip(catalogue.item_ids, catalogue.splits))
    seen = []
    for split, outfits in catalogue.benchmark.outfits.items():
        for outfit in outfits:
            assert {split_of[item] for item in outfit} == {split}
            categories = [item.split("-")[1] for item in outfit]
            assert categories[:3] == ["top", "trousers", "shoes"]
            assert len(set(categories)) == len(categories)
            seen += outfit
    assert sorted(seen) == sorted(catalogue.item_ids)
    counts = {split: len(outfits) for split, outfits in catalogue.benchmark.outfits.items()}
    assert counts["val"] == pytest.approx(counts["train"] / 8, rel=0.02) == counts["test"]
    share = np.mean(["glasses" in item for item in catalogue.item_ids]) * len(seen)
    assert share / sum(counts.values()) == pytest.approx(0.6, abs=0.04)


def test_labels_are_known_where_they_are_visible(large):
    catalogue, _ = large
    assert (catalogue.labels[:, 0] != UNKNOWN).all()
    for label, category in enumerate(CATEGORIES):
        rows = catalogue.labels[:, 0] == label
        assert ((catalogue.labels[rows, 1] != UNKNOWN) == (category in COLOURED)).all()
        assert ((catalogue.labels[rows, 2] != UNKNOWN) == (category in KINDS)).all()
        shown = {SCHEMA.attributes[2].values[k] for k in np.unique(catalogue.labels[rows, 2])}
        assert category not in KINDS or shown == set(KINDS[category])


@pytest.mark.parametrize("seed", range(3))
def test_style_tables_are_probabilities_with_two_favourites(seed):
    prior, values = style_tables(seed)
    assert prior.sum() == pytest.approx(1)
    assert (values >= 0).all()
    for style, (c, category) in itertools.product(range(len(prior)), enumerate(CATEGORIES)):
        colours, kinds = values[style, c, 5:13], values[style, c, 13:]
        for part, there, count in (
            (colours, category in COLOURED, 8),
            (kinds, category in KINDS, len(KINDS.get(category, ()))),
        ):
            assert part.sum() == pytest.approx(1 if there else 0)
            if there:
                rest = 0.15 / count
                expected = [0.6 + rest, 0.25 + rest, *[rest] * (count - 2)]
                assert sorted(part[part > 0], reverse=True) == pytest.approx(expected)
    # The monochrome and the complementary styles.
    favourite = values[..., 5:13].argmax(axis=2)
    assert len(set(favourite[0, :4])) == 1
    assert favourite[2, 0] == favourite[2, 3] != favourite[2, 1] == favourite[2, 2]


def test_values_are_drawn_as_the_tables_say(large):
    catalogue, _ = large
    prior, values = style_tables(1)
    for c in range(len(CATEGORIES)):
        rows = catalogue.labels[:, 0] == c
        shown = SCHEMA.multi_hot(catalogue.labels[rows]).mean(axis=0)
        np.testing.assert_allclose(
            shown, prior @ values[:, c], atol=4 * 0.5 / math.sqrt(rows.sum())
        )


def test_the_oracle_knows_how_often_it_is_right(large):
    """Scores are log-likelihood ratios, so the probability of a right answer is known exactly."""
    _, found = large
    blanks, oracle = found.benchmark.blanks, found.oracle
    claimed = []
    for blank in blanks:
        odds = np.exp(oracle.complete(blank.outfit, blank.answers))
        claimed.append(odds.max() / odds.sum())
    noise = 3 * 0.5 / math.sqrt(len(blanks))
    assert fill_in_the_blank(oracle, blanks) == pytest.approx(np.mean(claimed), abs=noise)
    # If half of the outfits are real, one with log odds s is real with probability 1 / (1 +
    # exp(-s)).
    scored = [(oracle.compatibility(o), 1) for o in found.benchmark.fitting]
    scored += [(oracle.compatibility(o), 0) for o in found.benchmark.clashing]
    scores, real = np.array(sorted(scored)).T
    for part in np.array_split(np.arange(len(scores)), 4):
        probability = 1 / (1 + np.exp(-scores[part]))
        assert real[part].mean() == pytest.approx(
            probability.mean(), abs=3 * 0.5 / len(part) ** 0.5
        )


def test_nothing_beats_the_oracle_and_co_occurrence_of_labels_comes_near(large):
    catalogue, found = large
    features = SCHEMA.multi_hot(catalogue.labels)
    table = cooccurrence(
        features, found.categories, len(CATEGORIES), found.outfits["train"], SCHEMA
    )
    scorers = {
        "random": RandomScorer(),
        "similarity": SimilarityScorer(features),
        "pmi": BilinearScorer(features, found.categories, table),
        "oracle": found.oracle,
    }
    figures = outfit_figures(scorers, found.benchmark)["scorers"]
    for name, noise in (("fitb", 0.03), ("auc", 0.01), ("recall@10", 0.02), ("recall@50", 0.03)):
        in_order = [figures[scorer][name] for scorer in scorers]
        assert max(in_order) <= figures["oracle"][name] + noise
        assert in_order[0] < in_order[1] < in_order[2]
    assert 0.58 < figures["oracle"]["fitb"] < 0.72 and 0.9 < figures["oracle"]["auc"] < 0.96


@pytest.mark.parametrize("category", COLOURED)
def test_a_garment_s_colour_is_visible_at_any_position(category):
    kind = KINDS.get(category, (None,))[0]
    for colour, seed in itertools.product(COLOURS, range(12)):
        pixels = picture(category, colour, kind, f"{seed}")
        assert pixels.shape == (64, 64, 3)
        share = (abs(pixels.astype(int) - rgb(colour)).max(axis=2) <= 2).mean()
        assert share > 0.015, (colour, seed)


@pytest.mark.parametrize("category", KINDS)
def test_kinds_of_one_figure_differ(category):
    colour = "blue" if category in COLOURED else None
    for seed in range(4):
        drawn = [picture(category, colour, kind, f"{seed}") for kind in KINDS[category]]
        for one, other in itertools.combinations(drawn, 2):
            assert (one != other).any(axis=2).mean() > 0.01


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_part_lies_within_the_figure(category):
    left, upper, side = PARTS[category]
    assert left >= 0 and upper >= 0 and max(left, upper) + side <= 1
    assert picture(category, "red", KINDS.get(category, (None,))[0], "x", 48).shape == (48, 48, 3)


def test_through_the_program(tmp_path):
    command = ["--catalogue", "wardrobe-outfits", "--items", "240", "--size", "24"]
    done = build(*command, "--out", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert "entries of outfits.json kept" in done.stdout
    index = ShardIndex.read(tmp_path / "shards")
    samples = [sample for split in SPLITS for sample in iterate(index, split)]
    ids, labels = [s.item_id for s in samples], np.stack([s.labels for s in samples])
    found = read_outfits(tmp_path / "shards", index.schema, "val", ids, labels)
    assert found.oracle is not None and found.category == 0
    assert len(found.benchmark.blanks) == len(found.outfits["val"])
    figures = outfit_figures({"oracle": found.oracle}, found.benchmark)["scorers"]["oracle"]
    assert set(figures) == {"fitb", "auc", "recall@10", "recall@30", "recall@50"}


def test_invalid_requests_are_rejected():
    with pytest.raises(UserError, match="items: expected at least 200"):
        wardrobe_outfits(199)
    with pytest.raises(UserError, match="size: expected 16 to 1024"):
        wardrobe_outfits(300, size=8)
    assert len(wardrobe_outfits(200).benchmark.outfits["test"]) >= 4
