"""Build each kind of catalogue from a tiny tree with its layout, and read it back."""

import itertools
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from programs import run
from trees import (
    png,
    write_celeba,
    write_deepfashion,
    write_lines,
    write_saved_dataset,
    write_shapes3d,
    write_support,
)

from adde.errors import UserError
from adde.files import write_json
from adde.schema import UNKNOWN
from adde.shards.catalogues.importers import open_catalogue
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.index import ShardIndex
from adde.shards.queries import read_queries
from adde.shards.reader import iterate


def opened(name, images=None, **options):
    return open_catalogue(name, images, TableOptions(**options))


build = partial(run, "build.py", "--workers", 1)


def stored(root):
    """Return (split, labels by name, picture) by item id."""
    index = ShardIndex.read(root)
    return {
        sample.item_id: (split, index.schema.decode(sample.labels), sample.picture)
        for split in index.splits
        for sample in iterate(index, split)
    }


SIZES = (3, 2)
TRAIN = [[a, b] for a, b in itertools.product(range(3), range(2))] * 5
TEST = [[0, 0], [1, 0], [2, 0], [0, 1], [1, None]]
QUERIES = [
    (0, [-1, 1, 0, 0, 0], [1, 0]),
    (3, [0, 0, 0, 1, -1], [0, 0]),
    (4, [1, -1, 0, 0, 0], [0, None]),
]


@pytest.fixture
def support(tmp_path):
    root = tmp_path / "Shopping100k"
    write_support(root, TRAIN, TEST, SIZES, QUERIES)
    return root


def test_support_files(support, tmp_path):
    done = build("--catalogue", f"support:{support}", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 entries of queries.json kept" in done.stdout
    assert "triplet_train.txt is not needed" in done.stdout
    index = ShardIndex.read(tmp_path / "out")
    assert index.name == "Shopping100k"
    assert (index.schema.names, index.schema.sizes) == (("attribute_01", "attribute_02"), SIZES)
    found = stored(tmp_path / "out")
    assert len(found) == len(TRAIN) + len(TEST)
    for part, labels in (("train", TRAIN), ("test", TEST)):
        for number, row in enumerate(labels):
            split, named, picture = found[f"img/{part} {number}.png"]
            assert split in (("train", "val") if part == "train" else ("test",))
            assert list(named.values()) == [None if v is None else str(v) for v in row]
            assert picture == (support / f"img/{part} {number}.png").read_bytes()
    assert {split for split, _, _ in found.values()} == {"train", "val", "test"}
    # The queries are unchanged; references are rows of the stored split.
    queries = read_queries(index, "test")
    gallery = [sample.item_id for sample in iterate(index, "test")]
    for row, (reference, indicator, target) in enumerate(QUERIES):
        column = indicator.index(1)
        assert gallery[queries.reference[row]] == f"img/test {reference}.png"
        assert queries.attribute[row] == (column >= 3)
        assert queries.value[row] == column - 3 * (column >= 3)
        assert queries.targets[row].tolist() == [UNKNOWN if v is None else v for v in target]
    assert read_queries(index, "val") is None
    assert (
        "nothing to do"
        in build("--catalogue", f"support:{support}", "--out", tmp_path / "out").stdout
    )


def test_support_files_with_names(support):
    names = [
        {"name": "colour", "values": ["red", "green", "blue"]},
        {"name": "sleeve", "values": ["short", "long"]},
    ]
    write_json(support / "schema.json", {"attributes": names})
    assert opened(f"support:{support}").schema.names == ("colour", "sleeve")
    write_json(support / "schema.json", {"attributes": names[::-1]})
    with pytest.raises(UserError, match=r"schema.json: expected \(3, 2\) values"):
        opened(f"support:{support}")


def test_support_queries_of_a_picture_left_out(support, tmp_path):
    (support / "img" / "test 3.png").write_bytes(b"")
    words = ("--catalogue", f"support:{support}", "--out", tmp_path / "out")
    done = build(*words, "--skip-unreadable")
    assert "2 of 3 entries of queries.json kept" in done.stdout
    assert len(read_queries(ShardIndex.read(tmp_path / "out"), "test")) == 2


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("labels_test.txt", ["1 0 0 1 0"] * 4, "labels_test.txt: expected 5 lines"),
        ("labels_test.txt", ["1 0 0 1"] * 5, "lines 1 to 5: expected 5 numbers per line"),
        ("labels_test.txt", ["1 0 2 1 0"] * 5, "expected zeros and ones"),
        ("labels_test.txt", ["1 0 x 1 0"] * 5, "lines 1 to 5: expected rows of numbers"),
        ("attr_num.txt", ["3 two"], "attr_num.txt: expected the number of values"),
        ("ref_test.txt", ["0", "5", "1"], "ref_test.txt, line 2: expected a line of labels_test"),
        ("ref_test.txt", ["0", "1"], "found 2, 3 and 3"),
        ("indfull_test.txt", ["1 1 0 0 0"] * 3, "indfull_test.txt, line 1: expected one 1"),
        (
            "gt_test.txt",
            ["1 0 0 1 0"] * 3,
            "gt_test.txt, line 1: expected the value wanted by indf",
        ),
    ],
)
def test_support_files_that_do_not_fit(support, name, lines, message):
    write_lines(support / name, lines)
    with pytest.raises(UserError, match=message):
        opened(f"support:{support}")


def test_support_labels_with_several_values_are_reported(support):
    write_lines(support / "labels_test.txt", ["1 1 0 1 0"] * 5)
    found = opened(f"support:{support}")
    assert (found.labels[-5:] == [UNKNOWN, 0]).all()
    assert "labels_test.txt: 5 labels with several values are unknown" in found.notices


def fashion_items():
    return [
        (
            f"img/Item_{number // 3}/img_{number:08d}.jpg",
            1 + number % 2,
            {0: 1} if number % 3 else {1: 1, 2: 0, 3: 1 if number % 2 else -1, 4: 1},
            ("train", "train", "val", "test")[number % 4],
        )
        for number in range(60)
    ]


def test_support_labels_are_sets_where_schema_json_allows_them(support):
    names = [
        {"name": "colour", "values": ["red", "green", "blue"], "multiple": True},
        {"name": "sleeve", "values": ["short", "long"]},
    ]
    write_json(support / "schema.json", {"attributes": names})
    write_lines(support / "labels_test.txt", ["1 0 1 1 0"] * 4 + ["0 1 0 1 1"])
    found = opened(f"support:{support}")
    assert [found.schema.decode(row) for row in found.labels[-2:]] == [
        {"colour": ["red", "blue"], "sleeve": "short"},
        {"colour": ["green"], "sleeve": None},
    ]
    assert "labels_test.txt: 1 labels with several values are unknown" in found.notices


def test_deepfashion(tmp_path):
    root, items = tmp_path / "df", fashion_items()
    items[0] = (items[0][0], 1, {0: 1, 1: 1}, "train")  # two textures at once
    write_deepfashion(root, items)
    done = build("--catalogue", f"deepfashion:{root}", "--out", tmp_path / "out", "--min-count", 1)
    assert done.returncode == 0, done.stderr
    assert "'texture': 1 items have several values" in done.stdout
    assert "column 'fabric' is no attribute" in done.stdout
    index = ShardIndex.read(tmp_path / "out")
    assert (index.name, index.schema.names) == ("deepfashion", ("category", "texture"))
    found = stored(tmp_path / "out")
    assert len(found) == 60
    for name, category, flags, split in items:
        textures = [v for n, v in enumerate(("polka dot", "striped")) if flags.get(n) == 1]
        labels = {"category": ("Tank Top", "Jeans")[category - 1], "texture": textures or None}
        assert found[name][:2] == (split, labels)


def test_deepfashion_files_that_do_not_fit(tmp_path):
    root, items = tmp_path / "df", fashion_items()
    write_deepfashion(root, items)
    path = root / "Anno" / "list_category_img.txt"
    whole = path.read_text()
    path.write_text(whole.replace("60\n", "61\n", 1))
    with pytest.raises(UserError, match="as its first line says, '61', found 60"):
        opened(f"deepfashion:{root}")
    path.write_text(whole.replace("   2\n", "   3\n", 1))
    with pytest.raises(UserError, match="line 4: expected a number from 1 to 2, found '3'"):
        opened(f"deepfashion:{root}")
    path.write_text(whole)
    write_lines(root / "Old" / "list_attr_img.txt", [])
    with pytest.raises(UserError, match=r"one list_attr_img.txt .* found .* and .*; keep one"):
        opened(f"deepfashion:{root}")
    (root / "Eval" / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"one list_eval_partition.txt .* found none"):
        opened(f"deepfashion:{root}")


def test_celeba(tmp_path):
    root = tmp_path / "celeba"
    flags = itertools.cycle([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    items = [(*next(flags), (0, 0, 0, 1, 2)[number % 5], number // 2) for number in range(100)]
    write_celeba(root, items)
    done = build("--catalogue", f"celeba:{root}", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = stored(tmp_path / "out")
    assert len(found) == 100
    for number, (smiling, young, split, _) in enumerate(items):
        labels = {"Smiling": {1: "yes", -1: "no"}[smiling], "Young": {1: "yes", -1: "no"}[young]}
        expected = (("train", "val", "test")[split], labels, png(number))
        assert found[f"{number + 1:06d}.jpg"] == expected
    # Splits can be assigned by person instead of picture.
    by_person = opened(f"celeba:{root}", group_by="identity")
    assert by_person.schema.names == ("Smiling", "Young")
    assert all(a == b for a, b in zip(by_person.splits[::2], by_person.splits[1::2]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_saved_by_windows_editors(tmp_path, encoding):
    root = tmp_path / "celeba"
    flags = itertools.cycle([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    items = [(*next(flags), (0, 0, 0, 1, 2)[number % 5], number // 2) for number in range(100)]
    write_celeba(root, items)
    plain = opened(f"celeba:{root}")
    for path in root.rglob("*.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode(encoding))
    again = opened(f"celeba:{root}")
    assert (again.item_ids, again.schema, again.splits) == (
        plain.item_ids,
        plain.schema,
        plain.splits,
    )
    path = next(root.rglob("list_attr_celeba.txt"))
    path.write_bytes(
        path.read_bytes().decode(encoding).replace("Young", "Jünger").encode("latin-1")
    )
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt, line 2: expected UTF-8, .*0xfc"):
        opened(f"celeba:{root}")


def test_an_attribute_with_one_value_is_left_out(tmp_path):
    root = tmp_path / "celeba"
    write_celeba(root, [(1, 1 - 2 * (n // 5 % 2), (0, 0, 0, 1, 2)[n % 5], n) for n in range(100)])
    found = opened(f"celeba:{root}")
    assert found.schema.names == ("Young",)
    assert any("'Smiling' is no attribute" in notice for notice in found.notices)


def test_shapes3d(tmp_path):
    images, factors = write_shapes3d(tmp_path / "3dshapes.h5")
    words = ("--catalogue", f"3dshapes:{tmp_path / '3dshapes.h5'}", "--out", tmp_path / "out")
    done = build(*words)
    assert done.returncode == 0, done.stderr
    index = ShardIndex.read(tmp_path / "out")
    assert index.schema.names == (
        *("floor_hue", "wall_hue", "object_hue"),
        *("scale", "shape", "orientation"),
    )
    assert index.schema.attributes[3].values == ("0.75", "1", "1.25")
    assert index.schema.attributes[5].values == ("-30", "30")
    found = stored(tmp_path / "out")
    assert len(found) == len(images) == 192
    for row in range(192):
        _, labels, picture = found[f"{row:06d}"]
        assert [float(value) for value in labels.values()] == factors[row].tolist()
        np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(picture))), images[row])
    assert "nothing to do" in build(*words).stdout
    with pytest.raises(UserError, match="--min-count: expected no such option"):
        opened(f"3dshapes:{tmp_path / '3dshapes.h5'}", min_count=2)
    with pytest.raises(UserError, match=r"expected 3dshapes\.h5"):
        opened(f"3dshapes:{__file__}")


def dataset_items(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (seed + number, int(rng.integers(-1, 2)), ("red", "blue", None)[number % 3])
        for number in range(count)
    ]


def test_saved_dataset(tmp_path):
    parts = {"train": dataset_items(60), "test": dataset_items(25, 100)}
    write_saved_dataset(tmp_path / "saved", parts)
    words = ("--catalogue", f"hf:{tmp_path / 'saved'}", "--out", tmp_path / "out")
    done = build(*words, "--min-count", 1)
    assert done.returncode == 0, done.stderr
    assert "validation items are drawn from train" in done.stdout
    found = stored(tmp_path / "out")
    assert len(found) == 85
    for row, (seed, kind, colour) in enumerate(parts["train"] + parts["test"]):
        split, labels, picture = found[f"{row:08d}"]
        assert split in (("train", "val") if row < 60 else ("test",))
        assert labels == {"kind": ("shirt", "shoe", None)[kind], "colour": colour}
        assert picture == png(seed)
    # A Dataset saved alone is split by a hash.
    alone = opened(f"hf:{tmp_path / 'saved' / 'train'}", min_count=1)
    assert set(alone.splits) == {"train", "val", "test"}


def test_saved_dataset_that_is_damaged(tmp_path):
    write_saved_dataset(tmp_path / "saved", {"train": dataset_items(60)})
    folder = tmp_path / "saved" / "train"
    with pytest.raises(UserError, match=r"one column of pictures, found \['picture'\]"):
        opened(f"hf:{folder}", image_column="photo")
    (folder / "data-00001-of-00002.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"00001-of-00002.arrow: expected an Arrow stream"):
        opened(f"hf:{folder}")
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json: expected the names of its Arrow files"):
        opened(f"hf:{folder}")
    with pytest.raises(UserError, match=r"dataset_info\.json: no such file"):
        opened(f"hf:{tmp_path}")


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-1", "3.0"])
def test_invalid_numbers_of_values(tmp_path, size):
    write_support(tmp_path, [[0, 1]], [[1, 0]], (3, 2), [])
    (tmp_path / "attr_num.txt").write_text(f"[3, {size}]", encoding="utf-8")
    with pytest.raises(UserError, match="expected the number of values of each attribute, found"):
        opened(f"support:{tmp_path}")


@pytest.mark.parametrize(("reference", "found"), [("nan", "nan"), ("0.5", "0.5"), ("1", "1")])
def test_references_outside_the_file_are_rejected(tmp_path, reference, found):
    write_support(tmp_path, [[0, 1]] * 9, [[1, 0]], (3, 2), [(reference, [0, 0, 0, -1, 1], [1, 1])])
    with pytest.raises(UserError, match=f"expected a line of labels_test.txt .*, found {found}"):
        opened(f"support:{tmp_path}", val_share=0)


def test_empty_lists_and_odd_digits_are_rejected(tmp_path):
    write_celeba(tmp_path / "celeba", [])
    with pytest.raises(UserError, match="expected items in split 'train', found none of 0"):
        opened(f"celeba:{tmp_path / 'celeba'}")
    write_deepfashion(tmp_path / "d", [("img/0.png", "²", {}, "train")])
    with pytest.raises(UserError, match="expected a number from 1 to 2, found '²'"):
        opened(f"deepfashion:{tmp_path / 'd'}")
