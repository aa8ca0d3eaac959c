"""Rooms and sprites: pictures, speed, subsets and splits."""

import io
import itertools
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from adde.errors import UserError
from adde.shards.catalogues.drawn import rooms, sprites
from adde.shards.catalogues.importers import open_catalogue
from adde.shards.catalogues.tables.tabular import TableOptions

GRIDS = ("rooms", "sprites", "sprites-colour", "sprites-noisy")


def opened(name, items=300, seed=0, size=None, **options):
    return open_catalogue(name, None, TableOptions(**options), items=items, seed=seed, size=size)


def pixels(catalogue, row):
    return np.asarray(Image.open(io.BytesIO(catalogue.source(row).read()[0])))


@pytest.mark.parametrize("name", GRIDS)
def test_a_picture_depends_on_labels_and_seed_only(name):
    few, many = opened(name), opened(name, items=400)
    assert few.item_ids == many.item_ids[:300]
    assert len(set(many.item_ids)) == 400
    sizes = tuple(few.factors.values())
    assert sizes == few.schema.sizes
    for row in (0, 7, 299):
        assert int(few.item_ids[row]) == np.ravel_multi_index(few.labels[row], sizes)
        source = few.source(row)
        again = pickle.loads(pickle.dumps(source))
        assert again.read() == source.read() == many.source(row).read()
        assert again.stamp() == source.stamp()
    assert pixels(few, 0).shape == (64, 64, 3)
    assert opened(name, seed=1).item_ids != few.item_ids


@pytest.mark.parametrize("name", GRIDS)
def test_invalid_requests_are_rejected(name):
    total = int(np.prod(tuple(opened(name).factors.values())))
    with pytest.raises(UserError, match=f"expected 1 to {total:,}, the combinations of {name}"):
        opened(name, items=total + 1)
    with pytest.raises(UserError, match="expected 1 to"):
        opened(name, items=0)
    with pytest.raises(UserError, match=r"size: expected .* pixels, found 10"):
        opened(name, size=10)
    with pytest.raises(UserError, match="--min-count: expected no such option"):
        opened(name, min_count=2)
    with pytest.raises(UserError, match="expected items in split 'val'"):
        opened(name, items=3)


def test_all_items_cover_the_whole_grid():
    labels = opened("rooms", items=480_000, val_share=0.01, test_share=0.01).labels
    assert len(np.unique(np.ravel_multi_index(tuple(labels.T), rooms.SCHEMA.sizes))) == 480_000


def geometries():
    return itertools.product(range(8), range(4), range(15))


def test_rooms_are_fast_and_all_geometries_differ():
    rooms.brightness.cache_clear()
    start = time.process_time()
    table = np.stack([rooms.brightness(*geometry, 64) for geometry in geometries()])
    assert time.process_time() - start < 30
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(size, size=4000) for size in rooms.SCHEMA.sizes], axis=1)
    start = time.process_time()
    pictures = rooms.render(labels, 64)
    assert 4000 / (time.process_time() - start) > 8000
    # Differences must be visible in 8 bits, and large between neighbouring values.
    levels = np.round(table * 255).astype(np.int16).reshape(8, 4, 15, -1)
    assert len(np.unique(levels.reshape(480, -1), axis=0)) == 480
    assert np.abs(np.diff(levels, axis=0)).max(axis=-1).min() > 100
    assert np.abs(np.diff(levels, axis=2)).max(axis=-1).min() > 100
    assert pictures.max(axis=(1, 2, 3)).min() > 100


def test_rooms_mix_colours_linearly():
    one, other = np.array([[0, 3, 5, 2, 1, 4]]), np.array([[0, 3, 8, 2, 1, 4]])
    before, after = rooms.render(one, 64)[0].astype(int), rooms.render(other, 64)[0].astype(int)
    share = rooms.brightness(2, 1, 4, 64)
    expected = share @ rooms.COLOURS[[0, 3, 5]]
    assert np.abs(before.reshape(-1, 3) - expected).max() <= 0.51
    # Changing the object's colour changes only its pixels.
    changed = (before != after).any(axis=2).ravel()
    np.testing.assert_array_equal(changed & (share[:, 2] == 0), False)
    assert changed[share[:, 2] > 0.05].all()


def test_rays_hit_the_sphere_exactly_inside_its_silhouette():
    # Compare a sphere's silhouette with the distance of each ray from its centre.
    share = rooms.brightness(7, 2, 7, 256)[:, 2].reshape(256, 256) > 0
    camera = np.array([0, -rooms.CAMERA[0], rooms.CAMERA[1]])
    centre, radius = np.array([0, 0, 1.25]), 1.25
    ahead = np.array([0, 0, rooms.TARGET]) - camera
    ahead /= np.linalg.norm(ahead)
    up = np.cross([1, 0, 0], ahead)
    half = np.tan(np.radians(rooms.FIELD / 2))
    for row, column in np.random.default_rng(0).integers(256, size=(500, 2)).tolist():
        across, down = ((2 * (place + 0.5) / 256 - 1) * half for place in (column, row))
        ray = ahead + across * np.array([1, 0, 0]) - down * up
        ray /= np.linalg.norm(ray)
        closest = np.linalg.norm(np.cross(ray, centre - camera))
        if abs(closest - radius) > 0.04:  # not at the edge
            assert share[row, column] == (closest < radius), (row, column)


def test_every_factor_of_a_room_shows():
    base = np.array([2, 5, 8, 3, 0, 6])
    shown = rooms.render(base[None], 64)[0].astype(int)
    for factor in range(6):
        other = base.copy()
        other[factor] += 1
        changed = np.abs(rooms.render(other[None], 64)[0] - shown).max(axis=2) > 32
        assert changed.sum() > 40, rooms.SCHEMA.names[factor]


def test_masks_of_sprites_differ_and_stay_within_the_picture():
    masks = [sprites.mask(*place, 1) for place in itertools.product(range(3), range(6), range(40))]
    masks = np.stack(masks)
    assert len(np.unique(np.round(masks * 255).astype(np.uint8).reshape(720, -1), axis=0)) == 720
    for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
        assert not edge.any()
    # At scale 1 the square's side is 0.64 of the patch's.
    area = (0.64 * sprites.PATCH) ** 2
    assert masks[5 * 40].sum() == pytest.approx(area, rel=0.03)
    ellipse = np.pi * 0.9 * 0.52 * (sprites.PATCH / 2) ** 2
    assert masks[240 + 5 * 40].sum() == pytest.approx(ellipse, rel=0.03)
    # Areas scale with the square of the scale.
    assert masks[0].sum() == pytest.approx(area / 4, rel=0.06)


@pytest.mark.parametrize("size", sprites.SIZES)
def test_a_step_of_x_and_y_is_the_same_everywhere(size):
    def centre(x, y):
        picture = sprites.render(np.array([[2, 4, 9, x, y]]), size)[0, :, :, 0].astype(float)
        places = np.arange(size)
        columns, rows = picture.sum(axis=0), picture.sum(axis=1)
        return (columns @ places / columns.sum(), rows @ places / rows.sum())

    first = np.array(centre(0, 0))
    for x, y in ((1, 0), (0, 1), (31, 31), (17, 5)):
        moved = np.array(centre(x, y)) - first
        assert moved == pytest.approx(np.array([x, y]) * size / 64, abs=0.02)


def test_variants_of_sprites():
    labels = np.array([[0, 5, 0, 10, 10]] * 50)
    keys = np.stack([np.zeros(50, int), np.arange(50)], axis=1)
    plain = sprites.render(labels, 64)
    white = plain == 255
    np.testing.assert_array_equal(np.unique(plain[0])[[0, -1]], [0, 255])
    coloured = sprites.render(labels, 64, keys, "sprites-colour")
    inside = coloured[:, 26, 26]
    assert inside.min() >= 127 and len(np.unique(inside, axis=0)) == 50
    assert not coloured[plain == 0].any()
    noisy = sprites.render(labels, 64, keys, "sprites-noisy")
    assert (noisy[white] == 255).all()
    noise = noisy[plain == 0]
    assert noise.mean() == pytest.approx(127.5, abs=1)
    assert noise.std() == pytest.approx(255 / np.sqrt(12), abs=1)
    assert (noisy[0] != noisy[1]).any()


def test_held_out_combinations_are_in_test_only():
    names = ("object_hue", "shape")
    catalogue = opened("rooms", items=4000, hold_out=names, test_share=0.25)
    pairs = {split: set() for split in ("train", "val", "test")}
    for row, split in zip(catalogue.labels[:, [2, 4]].tolist(), catalogue.splits):
        pairs[split].add(tuple(row))
    assert len(pairs["test"]) == 10
    assert not pairs["test"] & (pairs["train"] | pairs["val"])
    assert len(pairs["train"]) == 30
    # Training sees every value.
    assert {hue for hue, _ in pairs["train"]} == set(range(10))
    assert {shape for _, shape in pairs["train"]} == set(range(4))
    # A smaller catalogue, or another order of the factors, holds out the same combinations.
    fewer = opened("rooms", items=2000, hold_out=names[::-1], test_share=0.25)
    assert fewer.splits == catalogue.splits[:2000]


def test_invalid_held_out_combinations():
    with pytest.raises(UserError, match="unknown attribute 'hue'"):
        opened("rooms", hold_out=("hue", "shape"))
    with pytest.raises(UserError, match="at least two factors, found"):
        opened("rooms", hold_out=("shape",))
    with pytest.raises(UserError, match=r"--test-share of 40 combinations .* found 0\.001"):
        opened("rooms", hold_out=("object_hue", "shape"), test_share=0.001)
    with pytest.raises(UserError, match=r"--hold-out: expected a catalogue of exact factors"):
        opened("wardrobe", hold_out=("outfit", "glasses"))
    with pytest.raises(UserError, match=r"exact factors .*, found items.csv"):
        opened("items.csv", hold_out=("a", "b"))
