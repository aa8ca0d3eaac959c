"""A run without stage 3 is evaluated by similarity, reported and exported."""

import json
import shutil

import numpy as np
import pytest

from adde.bundle import Bundle
from adde.shards.benchmark_lists import write_benchmark
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.shards.similarity_lists import SimilarityLists, SplitLists
from tests import programs
from tests.programs import finish
from tests.tiny_recipe import RECIPE


def start(*words, status=0):
    return finish(programs.start(*words), status)


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory):
    """Stage 1 of the tiny recipe, on shards with two triplets of which the second is reversed."""
    folder = tmp_path_factory.mktemp("similarity")
    shutil.copytree(tiny_shards, folder / "shards")
    index = ShardIndex.read(folder / "shards")
    samples = list(iterate(index, "test"))
    a = next(
        a
        for a in range(len(index.schema.names))
        if len({int(s.labels[a]) for s in samples if s.labels[a] >= 0}) > 1
    )
    anchor = next(s for s in samples if s.labels[a] >= 0)
    close = next(s for s in samples if s is not anchor and s.labels[a] == anchor.labels[a])
    far = next(s for s in samples if s.labels[a] not in (-1, anchor.labels[a]))
    ids = (anchor.item_id, close.item_id, far.item_id)
    triplets = {index.schema.names[a]: [ids, (ids[0], ids[2], ids[1])]}
    lists = SimilarityLists({"test": SplitLists(triplets=triplets)})
    write_benchmark(folder / "shards", lists, index.schema)
    (folder / "recipe.toml").write_text(RECIPE)
    words = ["--data.shards", folder / "shards", "--adde.schedule.epochs", 0]
    start("train/main.py", "--recipe", folder / "recipe.toml", "--run", folder / "run", *words)
    return folder / "run"


@pytest.fixture(scope="module")
def printed(run):
    return start("train/evaluate.py", "--run", run, "--task", "similarity")


def test_similarity_is_printed_written_and_reported(run, printed):
    found = json.loads((run / "similarity-test.json").read_text())
    assert (found["split"], found["given"]) == ("test", True)
    assert set(found["map"]) == {"subspace", "match", "classifier", "whole", "random"}
    assert "leak matrix" in printed and str(run / "similarity-test.json") in printed
    shown = {name: f"{100 * value:.1f}" for name, value in found["map"]["subspace"].items()}
    page = (run / "report.html").read_text()
    for part in ("Conditional similarity", "The leak matrix", f"<b>{shown['mean']}<small> %"):
        assert part in page
    # A strict comparison: a triplet and its reverse share one point.
    assert {row["mean"] for row in found["triplets"].values()} == {0.5}
    names = found["attributes"]
    for name, value in found["map"]["subspace"].items():
        if name != "mean":
            assert found["leak"][names.index(name)][names.index(name)] == pytest.approx(value)


def test_the_report_keeps_similarity_beside_manipulation(run, printed):
    start("train/evaluate.py", "--run", run)
    page = (run / "report.html").read_text()
    assert "Against the baselines" in page and "Conditional similarity" in page
    start("train/evaluate.py", "--run", run, "--split", "val", "--task", "similarity")
    assert (run / "similarity-val.json").exists()
    assert not (run / "metrics-val.json").exists()


def test_an_unknown_task_is_refused(run):
    printed = start("train/evaluate.py", "--run", run, "--task", "similarty", status=1)
    assert "--task: expected an evaluation of the method 'adde', found 'similarty'" in printed
    assert "similarity" in printed.partition("found 'similarty'")[2]


def test_export_says_that_the_memory_is_untrained(run):
    bundle = run.parent / "bundle"
    printed = start("export/to_onnx.py", "--run", run, "--out", bundle)
    said = "the mean prototypes of stage 2, untrained"
    assert said in printed and said in (bundle / "README.md").read_text()
    golden = Bundle.read(bundle).golden()
    # It edits all the same: a query with an edit is another than one without.
    flat = golden.embeddings.reshape(len(golden.embeddings), -1)
    unedited = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    edited = np.abs(golden.indicator).sum(axis=1) > 0
    assert edited.any()
    assert (np.abs(golden.query - unedited).max(axis=1)[edited] > 1e-4).all()
