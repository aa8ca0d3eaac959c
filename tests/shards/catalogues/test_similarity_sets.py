"""Data sets of conditional similarity on tiny trees, and the file that stores their questions."""

import numpy as np
import pytest
from test_importers import build, opened
from trees import write_asen, write_fashionai, write_lines, write_zappos

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import UNKNOWN
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.shards.similarity_lists import read_similarity
from adde.similarity import subspaces, triplet_accuracy

SHOES = [
    (
        ("Boots", "Shoes")[n % 2],
        ("Zipper", "Lace up", "Zipper;Lace up")[n % 3],
        "Men",
        ("Flat", "1in - 2in")[n // 2 % 2],
    )
    for n in range(30)
]
# filenames.json has them in reverse order: line 0 is item 29.
LINE = {item: 29 - item for item in range(30)}


def triplet(anchor, far, close):
    return (LINE[anchor], LINE[far], LINE[close])


TRIPLETS = {
    ("class", "train"): [triplet(0, 1, 2)] + [triplet(n, n + 1, n + 2) for n in range(3, 18)],
    ("heel", "val"): [triplet(20, 22, 21)],
    ("class", "val"): [triplet(20, 21, 22)],
    ("class", "test"): [triplet(24, 25, 26), triplet(27, 26, 25)],
}


@pytest.fixture
def zappos(tmp_path):
    root = tmp_path / "zappos"
    write_zappos(root, SHOES, TRIPLETS)
    return root


def given(shards, split):
    index = ShardIndex.read(shards)
    samples = [*iterate(index, split)]
    ids = [sample.item_id for sample in samples]
    labels = np.stack([sample.labels for sample in samples])
    return index.schema, ids, labels, read_similarity(shards, index.schema, split, ids, labels)


def test_zappos_with_triplets_through_the_program(zappos, tmp_path):
    shards = tmp_path / "shards"
    done = build("--catalogue", f"zappos:{zappos}", "--min-count", "1", "--out", shards)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 entries of similarity.json kept" in done.stdout
    assert "attribute 'closure': 10 items have several values" in done.stdout
    schema, ids, labels, benchmark = given(shards, "test")
    assert sorted(ids) == ["1024-24", "1025-25", "1026-26", "1027-27"]
    assert {"class", "closure", "heel"} <= set(schema.names) and "gender" not in schema.names
    assert set(benchmark.triplets) == {schema.attribute_index("class")}
    # The close item shares the anchor's class and the far one does not. A reader that expects the
    # order anchor, positive, negative would get every triplet wrong.
    (triplets,) = benchmark.triplets.values()
    kinds = labels[:, schema.attribute_index("class")]
    anchor, close, far = kinds[triplets].T
    assert (anchor == close).all() and (anchor != far).all()
    of_labels = np.eye(2, dtype=np.float32)[kinds][:, None]
    assert triplet_accuracy(subspaces(of_labels)[0], triplets) == 1
    assert [ids[row] for row in triplets[0]] == ["1024-24", "1026-26", "1025-25"]
    # Without lists of queries, all items with a known label are queries.
    assert (benchmark.queries == (labels != UNKNOWN)).all()
    closures = {sample: schema.decode(row)["closure"] for sample, row in zip(ids, labels)}
    assert closures["1026-26"] == ["Lace up", "Zipper"] and closures["1024-24"] == ["Zipper"]
    assert len(given(shards, "val")[3].triplets) == 2 and given(shards, "train")[3] is None


def test_zappos_splits_and_unlisted_items(zappos):
    found = opened(f"zappos:{zappos}", min_count=1)
    split_of = dict(zip(found.item_ids, found.splits))
    assert split_of["1000-0"] == "train" and split_of["1020-20"] == "val"
    assert split_of["1027-27"] == "test" and split_of["1029-29"] == "train"
    assert any("3 items are in no list" in notice for notice in found.notices)
    row = found.item_ids.index("1024-24")
    assert found.source(row).read()[1] == "png"


def test_zappos_without_triplets_draws_its_splits(tmp_path):
    write_zappos(tmp_path, SHOES)
    found = opened(f"zappos:{tmp_path}", min_count=1, val_share=0.3, test_share=0.3)
    assert found.benchmark is None and set(found.splits) == {"train", "val", "test"}


def test_other_splits_leave_the_triplets_out(zappos):
    found = opened(f"zappos:{zappos}", min_count=1, group_by="class", val_share=0, test_share=0)
    assert found.benchmark is None
    assert any("for other splits, and are left out" in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 1", "test.txt, line 1: expected three line numbers of filenames.json from 0 to 29"),
        ("0 1 30", "found '0 1 30'"),
        ("0 1 -2", "found '0 1 -2'"),
        ("0 1 29", "expected items of one split in a list, found '1000-0' in one of 'train' too"),
    ],
)
def test_bad_triplets_of_zappos(zappos, line, message):
    write_lines(zappos / "csn" / "tripletlists" / "heel_tripletlist_test.txt", [line])
    with pytest.raises(UserError, match="heel_tripletlist_test") as error:
        opened(f"zappos:{zappos}", min_count=1)
    assert message in str(error.value)


def test_zappos_names_missing_pictures(zappos):
    names = (zappos / "csn" / "filenames.json").read_text().splitlines()
    write_lines(
        zappos / "csn" / "filenames.json", [*names[:3], "Boots/Ankle/X/9.9.jpg", *names[4:]]
    )
    with pytest.raises(UserError, match=r"filenames.json, line 4: .* found '9-9'"):
        opened(f"zappos:{zappos}", min_count=1)
    next((zappos / "ut-zap50k-images").rglob("1000.0.jpg")).unlink()
    (zappos / "csn").rename(zappos.parent / "csn")
    found = opened(f"zappos:{zappos}", min_count=1, val_share=0, test_share=0)
    with pytest.raises(UserError, match=r"Boots/Ankle/<brand>/1000\.0\.jpg"):
        found.source(found.item_ids.index("1000-0")).read()


VALUES = {"sleeve": ["Invisible", "Short", "Long"], "collar": ["Invisible", "Shirt"]}
ASKED = {
    ("query", "valid"): ["0 0 1"],
    ("candidate", "valid"): ["1 0 1", "2 0 2"],
    ("query", "test"): ["0 0 1", "1 1 0", "3 1 1"],
    ("candidate", "test"): ["2 0 1", "3 0 0", "4 1 0", "5 1 1", "4 0 1", "3 1 0"],
}


@pytest.fixture
def asen(tmp_path):
    root = tmp_path / "FashionAI"
    pictures = {"train": 6, "valid": 3, "test": 6}
    labels = ["0 0 1", "1 0 2 1 1", "2 1 0", "3 0 0", "4 0 1 0 2", "5 1 1"]
    write_asen(root, VALUES, pictures, labels, ASKED)
    return root


def test_asen_through_the_program(asen, tmp_path):
    shards = tmp_path / "shards"
    done = build("--catalogue", f"asen:{asen}", "--out", shards)
    assert done.returncode == 0, done.stderr
    # train picture 4 in sleeve, test picture 3 in collar
    assert "2 labels with several values are unknown" in done.stdout
    schema, ids, labels, benchmark = given(shards, "test")
    assert schema.attributes[0].values == tuple(VALUES["sleeve"])  # Invisible is a value
    rows = [ids.index(f"test/Images/{n}.jpg") for n in range(6)]
    assert labels[rows].tolist() == [[1, -1], [-1, 0], [1, -1], [0, -1], [1, 0], [-1, 1]]
    queries = benchmark.queries[rows].tolist()
    assert queries == [[True, False], [False, True], *[[False, False]] * 4]
    candidates = benchmark.candidates[rows].tolist()
    assert candidates == [
        [False, False], [False, False], [True, False], [True, False], [True, True], [False, True],
    ]  # fmt: skip
    assert not benchmark.triplets
    _, ids, labels, _ = given(shards, "train")
    rows = [ids.index(f"train/Images/{n}.jpg") for n in range(6)]
    assert labels[rows].tolist() == [[1, -1], [2, 1], [-1, 0], [0, -1], [-1, -1], [-1, 1]]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("query_test.txt", "6 0 1", "line 1: expected a picture from 0 to 5"),
        ("query_test.txt", "0 0", "line 1: expected a picture from 0 to 5 and then attributes"),
        (
            "candidate_valid.txt",
            "0 2 0",
            "expected an attribute and a value of meta.json, found 2 and 0",
        ),
        (
            "label_train.txt",
            "0 1 2",
            "expected an attribute and a value of meta.json, found 1 and 2",
        ),
        ("label_train.txt", "a.jpg 1 2", "expected whole numbers, found 'a.jpg 1 2'"),
        (
            "filenames_test.txt",
            "train/Images/1.jpg",
            "found 'train/Images/1.jpg' in train and test",
        ),
    ],
)
def test_bad_files_of_asen(asen, file, line, message):
    write_lines(asen / file, [line])
    with pytest.raises(UserError) as error:
        opened(f"asen:{asen}")
    assert message in str(error.value)


def test_asen_without_an_attribute_s_values(asen):
    meta = read_json(asen / "meta.json")
    write_json(asen / "meta.json", {**meta, "ATTRIBUTES_NUM": {"sleeve": 4, "collar": 2}})
    with pytest.raises(UserError, match=r"\(4, 2\), found \(3, 2\)"):
        opened(f"asen:{asen}")
    del meta["ATTRIBUTES_VALUES"]["collar"]
    write_json(asen / "meta.json", meta)
    with pytest.raises(UserError, match="found no 'collar'"):
        opened(f"asen:{asen}")


def test_fashionai_s_csv(tmp_path):
    flags = ("ynn", "nyn", "nmy", "mny")
    rows = [("lapel_design_labels", "nnnym")] * 2
    rows += [("ribbon_labels", flags[n % 4]) for n in range(40)]
    write_fashionai(tmp_path, rows, "train1")
    write_fashionai(tmp_path, rows[:30], "train2")
    catalogue = opened(f"fashionai:{tmp_path}", val_share=0.2, test_share=0.2)
    assert catalogue.schema.names == ("lapel_design", "ribbon")
    assert catalogue.schema.attributes[0].values[3] == "Shawl"
    assert catalogue.schema.attributes[1].values == ("0", "1", "2")
    assert len(catalogue.item_ids) == 72
    assert catalogue.labels[:6].tolist() == [[3, -1], [3, -1], [-1, 0], [-1, 1], [-1, 2], [-1, 2]]
    assert catalogue.item_ids[42] == "train2/Images/lapel_design_labels/000.jpg"
    assert catalogue.source(42).read()[1] == "png"
    assert set(catalogue.splits) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("nnn", "expected a picture, a task and flags of n, m and one y"),
        ("yny", "expected a picture, a task and flags of n, m and one y"),
        ("ny", "expected 3 flags as other rows of 'ribbon' have, found 2"),
    ],
)
def test_bad_rows_of_fashionai(tmp_path, flags, message):
    write_fashionai(tmp_path, [("ribbon_labels", "nyn"), ("ribbon_labels", flags)], "x")
    with pytest.raises(UserError, match=r"label\.csv, line 2") as error:
        opened(f"fashionai:{tmp_path}", val_share=0, test_share=0)
    assert message in str(error.value)


def test_fashionai_needs_its_table(tmp_path):
    with pytest.raises(
        UserError, match=r"expected Annotations/label.csv there or one folder below"
    ):
        opened(f"fashionai:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"triplets": {"class": [["1024-24", "x", "1026-26"]]}},
            "triplets of 'class': expected an item of the shards, found 'x'",
        ),
        ({"triplets": {"class": [["1024-24", "1025-25"]]}}, "expected queries, candidates and tri"),
        (
            {"queries": {"hem": ["1024-24"]}},
            "similarity.json: expected attributes of the schema, found 'hem'",
        ),
        ({"queries": {"class": ["y"]}}, "queries of 'class': expected an item"),
        ({"answers": {}}, "unexpected keyword argument 'answers'"),
    ],
)
def test_a_damaged_similarity_json(zappos, tmp_path, change, message):
    shards = tmp_path / "shards"
    assert not build(
        "--catalogue", f"zappos:{zappos}", "--min-count", "1", "--out", shards
    ).returncode
    content = read_json(shards / "similarity.json")
    content["splits"]["test"] = change
    write_json(shards / "similarity.json", content)
    with pytest.raises(UserError) as error:
        given(shards, "test")
    assert message in str(error.value)
    write_json(shards / "similarity.json", {**content, "schema_hash": "other"})
    with pytest.raises(
        UserError, match=r"similarity\.json: expected questions of the shards' schema"
    ):
        given(shards, "test")


def test_triplets_with_omitted_pictures_are_omitted(zappos, tmp_path):
    next((zappos / "ut-zap50k-images").rglob("1025.25.jpg")).write_bytes(b"no picture")
    next((zappos / "ut-zap50k-images").rglob("1020.20.jpg")).write_bytes(b"no picture")
    arguments = ["--catalogue", f"zappos:{zappos}", "--min-count", "1", "--skip-unreadable"]
    done = build(*arguments, "--out", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert "0 of 4 entries of similarity.json kept" in done.stdout
