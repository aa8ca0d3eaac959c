"""Polyvore Outfits on a tiny tree, and the file that stores its outfits and questions."""

import numpy as np
import pytest
from test_importers import build, opened
from trees import write_polyvore

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.outfits import RandomScorer, as_text, outfit_figures
from adde.schema import UNKNOWN
from adde.shards.catalogues.importers import open_catalogue
from adde.shards.index import SPLITS, ShardIndex
from adde.shards.outfit_lists import read_outfits
from adde.shards.reader import iterate

COARSE = {
    "t": ("tops", "11", "blouse"),
    "b": ("bottoms", "27", "jeans"),
    "s": ("shoes", "41", "pumps"),
}
SETS = {
    "train": {f"1{n}": [f"t{n}", f"b{n}", f"s{n}"] for n in range(6)},
    "valid": {"20": ["t10", "b10"], "21": ["t11", "s11"]},
    "test": {"30": ["t20", "b20", "s20"], "31": ["t21", "b21", "s21"], "32": ["t22", "s22"]},
}
BLANKS = [
    (["30_1", "30_3"], ["30_2", "31_2", "31_1", "32_1"]),
    (["31_1", "31_2"], ["30_3", "32_2", "31_3", "32_1"]),
]
JUDGED = ["1 30_1 30_2 30_3", "0 31_1 30_2 32_2"]


def categories(sets=SETS):
    items = {item for outfits in sets.values() for outfit in outfits.values() for item in outfit}
    # A second fine category of tops.
    return {
        item: ("tops", "17", "tee") if item == "t22" else COARSE[item[0]] for item in sorted(items)
    }


@pytest.fixture
def tree(tmp_path):
    """Write a tree; the defaults are the constants above."""

    def make(kind="disjoint", sets=SETS, blanks=BLANKS, judged=JUDGED):
        write_polyvore(tmp_path / "polyvore", kind, sets, categories(sets), blanks, judged)
        return tmp_path / "polyvore" / kind

    return make


def given(shards, split="test"):
    index = ShardIndex.read(shards)
    samples = [sample for part in SPLITS for sample in iterate(index, part)]
    ids = [sample.item_id for sample in samples]
    labels = np.stack([sample.labels for sample in samples])
    return index.schema, ids, labels, read_outfits(shards, index.schema, split, ids, labels)


def test_polyvore_through_the_program(tree, tmp_path):
    done = build("--catalogue", f"polyvore:{tree()}", "--out", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    assert "15 of 15 entries of outfits.json kept" in done.stdout
    schema, ids, _, found = given(tmp_path / "shards")
    assert schema.names == ("category",)
    assert schema.attributes[0].values == ("bottoms", "shoes", "tops")
    named = {split: [[ids[r] for r in o] for o in all_] for split, all_ in found.outfits.items()}
    assert named["train"][2] == ["t2", "b2", "s2"] and named["test"][2] == ["t22", "s22"]
    assert [schema.attributes[0].values[c] for c in found.categories[found.outfits["val"][1]]] == [
        "tops",
        "shoes",
    ]
    # The right answer is the one from the question's outfit, at any position.
    blanks = found.benchmark.blanks
    assert [ids[blank.answers[blank.truth]] for blank in blanks] == ["b20", "s21"]
    assert [blank.truth for blank in blanks] == [0, 2]
    assert [ids[row] for row in blanks[0].outfit] == ["t20", "s20"]
    (right,), (wrong,) = found.benchmark.fitting, found.benchmark.clashing
    assert [ids[row] for row in right] == ["t20", "b20", "s20"]
    assert [ids[row] for row in wrong] == ["t21", "b20", "s22"]
    # Candidates have the same fine category and are in the same split.
    kinds = {"t20": "blouse", "t21": "blouse", "t22": "tee"}
    for question in found.benchmark.hidden:
        candidates = [ids[row] for row in question.candidates]
        assert all(item[1] == "2" for item in candidates)
        assert len({kinds.get(item, item[0]) for item in candidates}) == 1
    assert found.oracle is None
    as_text(outfit_figures({"random": RandomScorer()}, found.benchmark))
    assert len(given(tmp_path / "shards", "val")[3].benchmark.blanks) == 0


LEAKING = {**SETS, "test": {**SETS["test"], "33": ["t3", "s23"]}}


def test_disjoint_splits_that_share_an_item_are_rejected(tree):
    with pytest.raises(UserError, match="found 1 items of test in others, such as 't3' in train"):
        opened(f"polyvore:{tree(sets=LEAKING)}")


def test_non_disjoint_splits_report_shared_items(tree, tmp_path):
    done = build("--catalogue", f"polyvore:{tree('nondisjoint', LEAKING)}", "--out", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert "1 of 10 items of test outfits are in outfits of other splits" in done.stdout
    _, ids, _, found = given(tmp_path / "s")
    assert [ids[row] for row in found.outfits["test"][3]] == ["t3", "s23"]


def test_the_kind_of_splits_must_be_named(tree):
    with pytest.raises(UserError, match=r"polyvore/disjoint or .*polyvore/nondisjoint"):
        opened(f"polyvore:{tree().parent}")


FAULTS = {
    "train.json, outfit 6 (1): expected an outfit of at least 2 items, found 1": {
        "sets": {**SETS, "train": {**SETS["train"], "1": ["t9"]}}
    },
    "(1): expected each item once, found 't9' twice": {
        "sets": {**SETS, "train": {**SETS["train"], "1": ["t9", "s9", "t9"]}}
    },
    "fill_in_blank_test.json, question 0: expected one answer to be the item that was taken": {
        "blanks": [(["30_1"], ["31_2", "31_1"])]
    },
    "found none or several": {"blanks": [(["30_1"], ["30_2", "30_3"])]},
    "expected at least 2 answers, found 1": {"blanks": [(["30_1"], ["30_2"])]},
    "expected an outfit of at least 1 item, found 0": {"blanks": [([], ["30_2", "31_1"])]},
    "question 0: expected items of the set's outfits, found '11_1'": {
        "blanks": [(["30_1"], ["30_2", "11_1"])]
    },
    "compatibility_test.txt, line 1: expected 0 or 1 first, found '2'": {"judged": ["2 30_1 30_2"]},
    "line 1: expected an outfit of at least 2 items, found 1": {"judged": ["1 30_1"]},
    "line 1: expected items of the set's outfits, found '30_9'": {"judged": ["0 30_1 30_9"]},
}


@pytest.mark.parametrize(("message", "change"), FAULTS.items())
def test_outfits_that_cannot_be_used_are_named_or_left_out(tree, message, change):
    root = tree(**change)
    with pytest.raises(UserError) as error:
        opened(f"polyvore:{root}")
    assert message in str(error.value) and "--skip-unreadable" in str(error.value)
    found = open_catalogue(f"polyvore:{root}", skip_unreadable=True)
    assert message in "".join(found.notices)
    lists = found.benchmark
    assert (len(lists.outfits["train"]), len(lists.blanks["test"]), len(lists.judged["test"])) in (
        (6, 2, 2),
        (6, 0, 2),
        (6, 2, 0),
    )


def test_damaged_files_of_polyvore(tree):
    root = tree()
    write_json(root / "valid.json", [{"set_id": "1", "items": [{"item_id": "t1"}]}])
    with pytest.raises(UserError, match=r"valid.json, outfit 0: expected set_id.*found no 'index'"):
        opened(f"polyvore:{root}")
    write_json(root / "valid.json", {})
    with pytest.raises(UserError, match=r"valid.json: expected a list, found dict"):
        opened(f"polyvore:{root}")
    root = tree()
    write_json(root.parent / "polyvore_item_metadata.json", {"t1": {}})
    with pytest.raises(UserError, match=r"metadata.json, item b0: expected semantic_category"):
        opened(f"polyvore:{root}")


def test_outfits_with_omitted_pictures_are_omitted(tree, tmp_path):
    root = tree()
    (root.parent / "images" / "b20.jpg").write_bytes(b"no picture")
    arguments = ["--catalogue", f"polyvore:{root}", "--skip-unreadable", "--out", tmp_path / "s"]
    done = build(*arguments)
    assert done.returncode == 0, done.stderr
    # An outfit, a question and two judged outfits contain it.
    assert "11 of 15 entries of outfits.json kept" in done.stdout
    assert len(given(tmp_path / "s")[3].outfits["test"]) == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "outfits",
            {"test": [["t20"]]},
            "outfit 0 of test: expected an outfit of at least 2 items",
        ),
        ("outfits", {"test": [["t20", "t20"]]}, "expected each item once, found 't20' twice"),
        ("outfits", {"test": [["t20", "x"]]}, "expected an item of the shards, found 'x'"),
        ("outfits", {"test": []}, "expected outfits of split 'test', found none"),
        ("outfits", {}, "expected outfits of split 'test', found none"),
        ("outfits", [1], "expected outfits and questions, found: TypeError"),
        (
            "blanks",
            {"test": [[["t20"], ["b20", "b21"], 2]]},
            "blank 0 of test: expected one answer",
        ),
        (
            "blanks",
            {"test": [[["t20"], ["b20"]]]},
            "expected outfits and questions, found: TypeErr",
        ),
        ("judged", {"test": [[True, ["t20"]]]}, "outfit 0 judged of test: expected an outfit"),
        ("category", "hem", "expected a category of the schema, found 'hem'"),
    ],
)
def test_a_damaged_outfits_json(tree, tmp_path, key, value, message):
    assert not build("--catalogue", f"polyvore:{tree()}", "--out", tmp_path / "s").returncode
    content = read_json(tmp_path / "s" / "outfits.json")
    write_json(tmp_path / "s" / "outfits.json", {**content, key: value})
    with pytest.raises(UserError, match=r"outfits\.json") as error:
        given(tmp_path / "s")
    assert message in str(error.value)


def test_an_item_without_a_category_is_named(tree, tmp_path):
    assert not build("--catalogue", f"polyvore:{tree()}", "--out", tmp_path / "s").returncode
    schema, ids, labels, _ = given(tmp_path / "s")
    labels[ids.index("b3")] = UNKNOWN
    with pytest.raises(UserError, match=r"outfit 3 of train: expected every item's category.*'b3'"):
        read_outfits(tmp_path / "s", schema, "test", ids, labels)
    (tmp_path / "s" / "outfits.json").unlink()
    assert read_outfits(tmp_path / "s", schema, "test", ids, labels) is None
