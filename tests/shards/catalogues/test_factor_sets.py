"""Public data sets of exact factors, each on a tiny tree with its layout."""

import io
import os

import numpy as np
import pytest
from PIL import Image
from programs import run
from trees import write_cars3d, write_dsprites, write_shapes3d, write_smallnorb

from adde.errors import UserError
from adde.shards.catalogues.importers import open_catalogue
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


def opened(name, size=None, **options):
    return open_catalogue(name, None, TableOptions(**options), size=size)


def pixels(catalogue, row):
    content, extension = catalogue.source(row).read()
    assert extension == "png"
    return np.asarray(Image.open(io.BytesIO(content)))


def test_dsprites(tmp_path):
    images, classes = write_dsprites(tmp_path / "dsprites.npz")
    catalogue = opened(f"dsprites:{tmp_path / 'dsprites.npz'}")
    assert catalogue.factors == {"shape": 3, "scale": 2, "orientation": 4, "x": 2, "y": 2}
    assert catalogue.schema.attributes[0].values == ("square", "ellipse", "heart")
    np.testing.assert_array_equal(catalogue.labels, classes[:, 1:])
    for row in range(96):
        np.testing.assert_array_equal(
            pixels(catalogue, row), images[row, :, :, None] * np.array([255, 255, 255])
        )
    assert "same pictures" in catalogue.notices[0]


def test_invalid_dsprites(tmp_path):
    path = tmp_path / "d.npz"
    with pytest.raises(UserError, match=r"expected the .npz of dSprites, found no file"):
        opened(f"dsprites:{path}")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"expected the .npz of dSprites, found: BadZipFile"):
        opened(f"dsprites:{path}")
    classes, images = np.zeros((4, 6), int), np.zeros((4, 6, 6), np.uint8)
    np.savez(path, latents_classes=classes)
    with pytest.raises(UserError, match=r"expected at least two values|expected an array 'imgs'"):
        opened(f"dsprites:{path}")
    classes[:, 1:] = np.arange(4)[:, None] % 3 == 0
    np.savez(path, latents_classes=classes)
    with pytest.raises(UserError, match=r"expected an array 'imgs', found \['latents_classes'\]"):
        opened(f"dsprites:{path}")
    np.savez(path, latents_classes=classes, imgs=images[:3])
    with pytest.raises(UserError, match=r"'imgs' \(4, height, width\), found \(3, 6, 6\)"):
        opened(f"dsprites:{path}")
    np.savez(path, latents_classes=classes, imgs=images.astype(float))
    with pytest.raises(UserError, match="expected an array 'imgs' of bytes, found: float64"):
        opened(f"dsprites:{path}")
    np.savez(path, latents_classes=classes + 1, imgs=images)
    with pytest.raises(UserError, match="whose first is 0, a colour of one value"):
        opened(f"dsprites:{path}")
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_leaves_no_array(tmp_path):
    path = tmp_path / "d.npz"
    images, classes = write_dsprites(path, side=64)
    np.savez(path, imgs=images, latents_classes=classes)
    content = bytearray(path.read_bytes())
    content[content.index(images.tobytes()) + 300_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"d\.npz: expected the pixels of 'imgs', found: .*CRC"):
        opened(f"dsprites:{path}")
    assert list(tmp_path.iterdir()) == [path]


def test_mpi3d(tmp_path):
    sizes = (4, 4, 2, 3, 3, 40, 40)
    count = int(np.prod(sizes))
    # A picture's four bytes encode its number.
    content = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 1, 4, 1)
    np.savez(tmp_path / "mpi3d_real.npz", images=np.repeat(content, 3, axis=3))
    catalogue = opened(f"mpi3d:{tmp_path / 'mpi3d_real.npz'}", val_share=0.01)
    assert tuple(catalogue.factors.values()) == sizes
    for row in (0, 1, 40, 1599, 1600, 234_567, count - 1):
        number = int(pixels(catalogue, row)[0, :, 0].astype(np.uint8).view("<u4")[0])
        assert number == row
        assert np.ravel_multi_index(catalogue.labels[row], sizes) == row
    np.savez(tmp_path / "few.npz", images=np.zeros((10, 2, 2, 3), np.uint8))
    with pytest.raises(UserError, match=r"expected 1,036,800 or 460,800 pictures .* found 10"):
        opened(f"mpi3d:{tmp_path / 'few.npz'}")


def test_cars3d(tmp_path):
    images = write_cars3d(tmp_path / "cars")
    catalogue = opened(f"cars3d:{tmp_path / 'cars'}")
    assert catalogue.factors == {"elevation": 4, "azimuth": 24, "car": 3}
    assert len({tuple(row) for row in catalogue.labels.tolist()}) == 288
    for row in range(288):
        elevation, azimuth, car = catalogue.labels[row]
        np.testing.assert_array_equal(pixels(catalogue, row), images[car, elevation, azimuth])
    small = opened(f"cars3d:{tmp_path / 'cars'}", size=4)
    elevation, azimuth, car = small.labels[7]
    means = images[car, elevation, azimuth].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels(small, 7) - means).max() <= 1  # rounded along each axis


def test_invalid_cars3d(tmp_path):
    from scipy.io import savemat

    with pytest.raises(UserError, match=r"expected a folder of .mat files, .* found 0"):
        opened(f"cars3d:{tmp_path}")
    write_cars3d(tmp_path / "cars")
    savemat(tmp_path / "cars" / "car_002_mesh.mat", {"im": np.zeros((6, 6, 3, 24, 4), np.uint8)})
    with pytest.raises(UserError, match=r"car_002_mesh.mat: expected pictures \(8, 8, 3\)"):
        opened(f"cars3d:{tmp_path / 'cars'}")
    savemat(tmp_path / "cars" / "car_000_mesh.mat", {"picture": np.zeros(3)})
    with pytest.raises(UserError, match=r"car_000_mesh.mat: expected 'im' .* found None"):
        opened(f"cars3d:{tmp_path / 'cars'}")
    (tmp_path / "cars" / "car_000_mesh.mat").write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"car_000_mesh.mat: expected a .mat file of a car"):
        opened(f"cars3d:{tmp_path / 'cars'}")
    assert not list(tmp_path.rglob("*.npy"))


def test_smallnorb(tmp_path):
    written = write_smallnorb(tmp_path / "norb")
    catalogue = opened(f"smallnorb:{tmp_path / 'norb'}")
    assert catalogue.factors == {"category": 5, "elevation": 9, "azimuth": 18, "lighting": 6}
    for row in range(120):
        part = ("train", "test")[row // 60]
        pairs, category, info = (array[row % 60] for array in written[part])
        assert catalogue.labels[row].tolist() == [category, info[1], info[2] // 2, info[3]]
        assert catalogue.item_ids[row] == f"{part}-{row % 60:05d}-toy{info[0]}"
        assert catalogue.splits[row] in (("train", "val"), ("test",))[row // 60]
        np.testing.assert_array_equal(pixels(catalogue, row), pairs[0][:, :, None] * [1, 1, 1])
    held = opened(f"smallnorb:{tmp_path / 'norb'}", hold_out=("category", "lighting"))
    assert set(held.splits[:60]) == {"train", "val", "test"}


def test_invalid_smallnorb(tmp_path):
    write_smallnorb(tmp_path / "norb")
    (category,) = (tmp_path / "norb").glob("*testing-cat.mat")
    kept = category.read_bytes()
    category.write_bytes(kept[:20] + b"\x09" + kept[21:])
    with pytest.raises(UserError, match=r"testing-cat.mat: expected category from 0 to 4, found 9"):
        opened(f"smallnorb:{tmp_path / 'norb'}")
    category.write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="expected a matrix of SmallNORB, found: magic 0x0"):
        opened(f"smallnorb:{tmp_path / 'norb'}")
    category.write_bytes(kept[:-9])
    with pytest.raises(UserError, match=r"testing-cat.mat: expected a matrix of SmallNORB"):
        opened(f"smallnorb:{tmp_path / 'norb'}")
    category.rename(category.with_name(category.name + ".gz"))
    with pytest.raises(UserError, match=r"testing-cat.mat: .* found none; gunzip it first"):
        opened(f"smallnorb:{tmp_path / 'norb'}")


def test_an_array_is_unpacked_again_when_its_file_changes(tmp_path):
    path = tmp_path / "d.npz"
    write_dsprites(path)
    first = opened(f"dsprites:{path}").source(0)
    array = tmp_path / "d.images.npy"
    made = array.stat().st_mtime_ns
    assert opened(f"dsprites:{path}").source(0) == first
    os.utime(path, ns=(made + 10**9, made + 10**9))
    assert opened(f"dsprites:{path}").source(0).stamp() != first.stamp()


def test_the_index_knows_the_factors_of_a_build(tmp_path):
    write_shapes3d(tmp_path / "3dshapes.h5")
    words = ["--catalogue", f"3dshapes:{tmp_path / '3dshapes.h5'}", "--out", str(tmp_path / "out")]
    words += ["--hold-out", "shape", "object_hue", "--test-share", "0.2", "--workers", "1"]
    done = run("build.py", *words)
    assert done.returncode == 0, done.stderr
    index = ShardIndex.read(tmp_path / "out")
    assert index.factors == dict(zip(index.schema.names, index.schema.sizes))
    seen = {split: set() for split in index.splits}
    for split, pairs in seen.items():
        pairs |= {(s.labels[4], s.labels[2]) for s in iterate(index, split)}
    assert seen["test"] and not seen["test"] & (seen["train"] | seen["val"])


def test_an_index_rejects_factors_that_are_not_attributes(tiny_shards, tmp_path):
    index = ShardIndex.read(tiny_shards)
    assert index.factors == {}
    content = (tiny_shards / "index.json").read_text()
    assert "factors" not in content
    (tmp_path / "index.members").write_bytes((tiny_shards / "index.members").read_bytes())
    (tmp_path / "index.json").write_text(content.rstrip()[:-1] + ', "factors": {"colour": 4}}')
    with pytest.raises(
        UserError, match=r"expected factors among the attributes .* found {'colour': 4}"
    ):
        ShardIndex.read(tmp_path, check_files=False)
