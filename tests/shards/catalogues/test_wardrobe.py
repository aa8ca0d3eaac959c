"""The embedded catalogues: labels and pixels, families, splits, difficulty."""

import hashlib
import io
import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from adde.errors import UserError
from adde.schema import UNKNOWN
from adde.shards.catalogues.drawn.voxel import COLOURS, GLASSES, HEADWEAR, ambiguous, draw, visible
from adde.shards.catalogues.drawn.wardrobe import SCHEMA, wardrobe
from adde.shards.catalogues.drawn.wardrobe_hard import HELD_OUT, wardrobe_hard

PLAIN = {
    "outfit": "plain",
    "top_colour": "red",
    "layer_colour": "blue",
    "trousers_colour": "green",
    "shoes_colour": "yellow",
    "headwear": "none",
    "headwear_colour": "pink",
    "glasses": "none",
}
# Colours visible on each outfit, read from the pictures and not from the code.
TOP_AND_TROUSERS = {"top_colour", "trousers_colour"}
LAYER_AND_TROUSERS = {"layer_colour", "trousers_colour"}
SHOWN = {
    "plain": TOP_AND_TROUSERS,
    "stripes": TOP_AND_TROUSERS,
    "checker": TOP_AND_TROUSERS,
    "overalls": TOP_AND_TROUSERS,
    "hoodie": TOP_AND_TROUSERS,
    "jacket": TOP_AND_TROUSERS | LAYER_AND_TROUSERS,
    "tie": TOP_AND_TROUSERS | LAYER_AND_TROUSERS,
    "coat": LAYER_AND_TROUSERS,
    "suit": LAYER_AND_TROUSERS,
    "dress": {"layer_colour"},
}


def pixels(look, seed="a", size=64):
    return np.asarray(draw(look, seed, size)).astype(int)


def changed(one, other, by=32):
    """Return (S, S) bool: whether a channel of a pixel differs by more than `by` of 255 levels."""
    return np.abs(one - other).max(axis=2) > by


@pytest.fixture(scope="module")
def easy():
    return wardrobe()


@pytest.fixture(scope="module")
def hard():
    return wardrobe_hard()


@pytest.fixture(scope="module")
def worn(hard):
    """(N, A) labels of the looks that are drawn, none missing."""
    looks = [hard.source(row).figure.look for row in range(len(hard.item_ids))]
    return np.stack([hard.schema.encode(look) for look in looks])


# --- labels against pixels


@pytest.mark.parametrize("outfit", SHOWN)
@pytest.mark.parametrize(
    "attribute", ["top_colour", "layer_colour", "trousers_colour", "shoes_colour"]
)
def test_garment_colour_changes_pixels_exactly_where_it_is_shown(outfit, attribute):
    look = {**PLAIN, "outfit": outfit}
    one, other = (pixels({**look, attribute: colour}) for colour in ("black", "pink"))
    shown = attribute in SHOWN[outfit] | {"shoes_colour"}
    assert visible(attribute, look) == shown
    if shown:
        assert changed(one, other).sum() >= 25
    else:
        assert (one == other).all()


@pytest.mark.parametrize("headwear", HEADWEAR)
def test_headwear_colour_shows_with_a_hat_only(headwear):
    look = {**PLAIN, "headwear": headwear}
    one, other = (pixels({**look, "headwear_colour": colour}) for colour in ("black", "pink"))
    assert visible("headwear_colour", look) == (headwear != "none")
    assert changed(one, other).sum() >= 200 if headwear != "none" else (one == other).all()


@pytest.mark.parametrize(("attribute", "words"), [("headwear", HEADWEAR), ("glasses", GLASSES)])
def test_every_two_kinds_look_different(attribute, words):
    drawn = {word: pixels({**PLAIN, attribute: word}) for word in words}
    for one, other in itertools.combinations(words, 2):
        assert changed(drawn[one], drawn[other]).sum() >= 8, (one, other)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    ("attribute", "look"),
    [
        ("top_colour", {}),
        ("top_colour", {"outfit": "jacket"}),
        ("layer_colour", {"outfit": "tie"}),
        ("layer_colour", {"outfit": "coat"}),
        ("layer_colour", {"outfit": "suit"}),
        ("trousers_colour", {}),
        ("trousers_colour", {"outfit": "overalls"}),
        ("shoes_colour", {}),
        ("headwear_colour", {"headwear": "beanie"}),
        ("headwear_colour", {"headwear": "bunny_ears"}),
    ],
)
def test_the_part_has_the_named_colour(attribute, look, colour):
    contrast = "white" if colour == "black" else "black"
    part = pixels({**PLAIN, **look, attribute: colour}, size=128)
    mask = changed(part, pixels({**PLAIN, **look, attribute: contrast}, size=128))
    wanted = np.array([int(COLOURS[colour][at : at + 2], 16) for at in (1, 3, 5)])
    exact = np.abs(part[mask] - wanted).max(axis=1) <= 2
    assert exact.mean() >= 0.3  # the front; the top is lighter and the side darker


def test_outfits_that_can_be_drawn_look_different():
    """Outfits with the same known labels have different pictures."""
    for top, layer in itertools.permutations(COLOURS, 2):
        look = {**PLAIN, "top_colour": top, "layer_colour": layer, "trousers_colour": "green"}
        looks = [{**look, "outfit": outfit} for outfit in ("plain", "stripes", "jacket", "suit")]
        drawn = [pixels(each) for each in looks if not ambiguous(each)]
        for one, other in itertools.combinations(drawn, 2):
            assert changed(one, other, by=20).sum() >= 20, (top, layer)


@pytest.mark.parametrize(
    ("look", "twin"),
    [
        ({"outfit": "stripes", "top_colour": "white"}, {"outfit": "plain", "top_colour": "white"}),
        ({"outfit": "tie", "layer_colour": "red"}, {"outfit": "plain"}),
        ({"outfit": "jacket", "top_colour": "white"}, {"outfit": "suit"}),
    ],
)
def test_looks_that_are_never_drawn_have_a_twin(look, twin):
    look, twin = {**PLAIN, **look}, {**PLAIN, **twin}
    assert ambiguous(look)
    assert not ambiguous(twin)
    assert changed(pixels(look), pixels(twin), by=48).sum() <= 20


def test_no_figure_is_cut_off():
    """The edge of a picture has only the background's colour."""
    for seed in range(12):
        for headwear in ("none", "bear_ears", "bunny_ears"):
            picture = pixels({**PLAIN, "outfit": "coat", "headwear": headwear}, str(seed))
            edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert (edge == edge[0]).all(), (seed, headwear)


def test_the_seed_changes_what_is_not_labelled():
    assert changed(pixels(PLAIN, "a"), pixels(PLAIN, "b")).mean() > 0.1


# --- families and splits


def test_size_of_the_catalogue(easy):
    assert easy.labels.shape == (20_000, 8)
    assert easy.labels.dtype == np.int64
    assert len(set(easy.item_ids)) == len(easy.splits) == 20_000
    counted = Counter(easy.splits)
    assert abs(counted["test"] - 2000) < 100
    assert abs(counted["val"] - 2000) < 100
    for column, size in zip(easy.labels.T, SCHEMA.sizes):
        assert set(column.tolist()) - {UNKNOWN} == set(range(size))


def test_invisible_attributes_are_unknown(easy):
    for labels in easy.labels[:2000]:
        look = SCHEMA.decode(labels)
        known = {name for name, word in look.items() if word is not None}
        hat = {"headwear_colour"} if look["headwear"] != "none" else set()
        always = {"outfit", "shoes_colour", "headwear", "glasses"}
        assert known == always | SHOWN[look["outfit"]] | hat
        assert not ambiguous(look)


def test_families_differ_from_their_base_in_one_label_and_stay_in_one_split(easy):
    rows = {}
    for row, item_id in enumerate(easy.item_ids):
        rows.setdefault(item_id.split("-")[0], []).append(row)
    for members in list(rows.values())[:-1]:  # the last family may be incomplete
        assert 3 <= len(members) <= 6
        assert len({easy.splits[row] for row in members}) == 1
        base, *variants = easy.labels[members]
        assert len({tuple(variant) for variant in variants}) == len(variants)
        for variant in variants:
            (differs,) = np.nonzero(variant != base)
            assert len(differs) == 1
            assert UNKNOWN not in (base[differs[0]], variant[differs[0]])


def exact_targets(labels, sizes):
    """Count the edits of one known attribute with an exact target, for each row, in plain loops."""
    rows = set(map(tuple, labels.tolist()))
    counts = []
    for row in map(tuple, labels.tolist()):
        edits = [
            (*row[:at], value, *row[at + 1 :])
            for at, size in enumerate(sizes)
            for value in range(size)
            if value != row[at]
        ]
        counts.append(sum(edit in rows for edit in edits))
    return np.array(counts)


def test_test_items_have_single_edit_targets(easy):
    test = np.array(easy.splits) == "test"
    counts = exact_targets(easy.labels[test], SCHEMA.sizes)
    assert (counts > 0).mean() > 0.99
    assert counts.sum() > 3000


def test_invisible_attributes_are_never_targets(easy):
    rows = set(map(tuple, easy.labels.tolist()))
    for row in easy.labels[:500].tolist():
        for at in np.nonzero(np.array(row) == UNKNOWN)[0]:
            asked = {(*row[:at], value, *row[at + 1 :]) for value in range(SCHEMA.sizes[at])}
            assert not asked & rows


# --- the same everywhere

FINGERPRINT = """
import hashlib
from adde.shards.catalogues.drawn.wardrobe import wardrobe
from adde.shards.catalogues.drawn.wardrobe_hard import wardrobe_hard
digest = hashlib.sha256()
for catalogue in (wardrobe(60, seed=3), wardrobe_hard(60, seed=3)):
    digest.update(catalogue.labels.tobytes() + "".join(catalogue.item_ids).encode())
    for row in (0, 7, 59):
        digest.update(catalogue.source(row).read()[0])
print(digest.hexdigest())
"""


def test_same_bytes_in_another_process():
    digest = hashlib.sha256()
    for catalogue in (wardrobe(60, seed=3), wardrobe_hard(60, seed=3)):
        digest.update(catalogue.labels.tobytes() + "".join(catalogue.item_ids).encode())
        for row in (0, 7, 59):
            source = pickle.loads(pickle.dumps(catalogue.source(row)))
            digest.update(source.read()[0])
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", FINGERPRINT]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("make", [wardrobe, wardrobe_hard])
def test_a_larger_catalogue_begins_with_the_smaller(make):
    small, large = make(60), make(90)
    assert (large.labels[:60] == small.labels).all()
    assert large.item_ids[:60] == small.item_ids
    assert large.splits[:60] == small.splits
    assert large.source(5).read() == small.source(5).read()
    assert set(small.splits) == {"train", "val", "test"}


@pytest.mark.parametrize("make", [wardrobe, wardrobe_hard])
def test_seeds_differ(make):
    assert (make(60, seed=0).labels != make(60, seed=1).labels).any()
    assert make(60, seed=0).source(0).read() != make(60, seed=1).source(0).read()


@pytest.mark.parametrize("make", [wardrobe, wardrobe_hard])
@pytest.mark.parametrize("size", [48, 97])
def test_pictures_are_whole_files_of_the_size_asked_for(make, size):
    data, extension = make(60, size=size).source(11).read()
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.size == (size, size)
    assert image.mode == "RGB"
    assert {"png": "PNG", "jpg": "JPEG"}[extension] == image.format


@pytest.mark.parametrize("make", [wardrobe, wardrobe_hard])
def test_invalid_requests_are_rejected(make):
    with pytest.raises(UserError, match=r"items: expected at least \d+ .* found 9"):
        make(9)
    with pytest.raises(UserError, match="size: expected 16 to 1024 pixels, found 0"):
        make(60, size=0)


# --- wardrobe-hard


def test_training_labels_are_missing_at_random(hard, worn):
    splits = np.array(hard.splits)
    missing = (hard.labels == UNKNOWN)[splits == "train"]
    assert np.abs(missing.mean(axis=0) - 0.3).max() < 0.02
    # Missing labels are independent of each other (two at once in 9 of 100) and of the value.
    assert abs((missing[:, 0] & missing[:, 1]).mean() - 0.09) < 0.02
    common = worn[splits == "train"][:, 0] == 0
    assert abs(missing[common, 0].mean() - missing[~common, 0].mean()) < 0.03
    assert (hard.labels[splits != "train"] != UNKNOWN).all()
    known = hard.labels != UNKNOWN
    assert (hard.labels == worn)[known].all()


def test_held_out_pairs_are_in_test_only(hard, worn):
    splits = np.array(hard.splits)
    any_pair = np.zeros(len(splits), dtype=bool)
    for pair in HELD_OUT:
        together = np.ones(len(splits), dtype=bool)
        for name, word in pair.items():
            column = worn[:, hard.schema.attribute_index(name)]
            together &= column == hard.schema.value_index(name, word)
            # Training contains each value; only the pair is new.
            assert (column[splits == "train"] == hard.schema.value_index(name, word)).sum() > 300
        assert not together[splits != "test"].any(), pair
        assert together[splits == "test"].sum() > 20, pair
        any_pair |= together
    assert 0.3 < any_pair[splits == "test"].mean() < 0.5


def test_values_have_a_long_tail(hard, worn):
    test = worn[np.array(hard.splits) == "test"]
    for column, size in zip(test.T, hard.schema.sizes):
        shares = np.bincount(column, minlength=size) / len(column)
        expected = 1 / np.arange(1, size + 1)
        assert np.abs(shares - expected / expected.sum()).max() < 0.05


def test_label_space_is_dense(hard):
    test = hard.labels[np.array(hard.splits) == "test"]
    counts = exact_targets(test, hard.schema.sizes)
    edits = sum(size - 1 for size in hard.schema.sizes)
    assert len(test) == 2000
    assert counts.mean() / edits > 0.6
    assert (counts > edits / 2).mean() > 0.6


def test_obscured_pictures_still_show_the_look(hard, worn):
    """Most are nearer to their own clear figure than to the same figure in other clothes."""
    nearer = 0
    for row in range(30):
        seed = f"wardrobe-hard/0/{row}"
        found = np.asarray(Image.open(io.BytesIO(hard.source(row).read()[0]))).astype(int)
        own = pixels(hard.schema.decode(worn[row]), seed)
        other = (worn[row] + 1) % np.array(hard.schema.sizes)
        stranger = pixels(hard.schema.decode(other), seed)
        assert changed(found, own).mean() > 0.01, row
        nearer += np.abs(found - own).sum() < np.abs(found - stranger).sum()
    assert nearer >= 24
