"""serve_onnx/query.py in a process in which torch cannot be imported."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

PROGRAM = Path(__file__).parents[2] / "serve_onnx" / "query.py"
BLOCKED = ("torch", "torchvision", "timm", "onnx", "accelerate", "pydantic", "matplotlib")
START = f"""
import runpy, sys
class Block:  # as if they were not installed
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Block)
sys.argv[0] = {str(PROGRAM)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def query(tiny_bundle, tiny_shards):
    def run(*arguments):
        command = [sys.executable, "-W", "error", "-c", START, "--bundle", tiny_bundle]
        command += ["--gallery", tiny_shards, *arguments]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, env=environment, check=False
        )

    return run


def test_a_picture_file_is_answered_in_print_and_as_a_picture(query, tiny_shards, tmp_path):
    index = ShardIndex.read(tiny_shards)
    sample = next(iterate(index, "test"))
    (tmp_path / "x.png").write_bytes(sample.picture)
    edits = ("--set", "colour=green", "--set", "border=white")
    arguments = ("--image", tmp_path / "x.png", *edits, "--split", "test", "--k", "7")
    done = query(*arguments, "--picture", tmp_path / "answer.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("x.png, but colour=green, border=white")
    assert lines[1].startswith("seen in it: shape=")
    assert [line.split()[0] for line in lines[2:]] == list("1234567")
    # Attributes without a label do not count.
    known = {s.item_id: int((s.labels >= 0).sum()) for s in iterate(index, "test")}
    assert all(f"/{known[line.split()[1]]} match" in line for line in lines[2:])
    assert f"picture: {tmp_path / 'answer.png'}" in done.stderr
    with Image.open(tmp_path / "answer.png") as answer:
        assert answer.width > 800


def test_an_item_is_answered_as_json_like_its_picture(query, tiny_shards, tmp_path):
    sample = next(iterate(ShardIndex.read(tiny_shards), "val"))
    (tmp_path / "x.png").write_bytes(sample.picture)
    done = query("--item", sample.item_id, "--json", "--set", "shape=disc")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["edits"] == {"shape": "disc"}
    assert len(content["answers"]) == 10
    scores = [answer["score"] for answer in content["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert content["answers"][0]["matches"]["shape"]["wanted"] == "disc"
    # Asked by id, the item itself is left out; its picture alone cannot tell.
    content = json.loads(query("--item", sample.item_id, "--json").stdout)
    by_picture = query("--image", tmp_path / "x.png", "--json", "--k", "11")
    answers = json.loads(by_picture.stdout)["answers"]
    others = [a for a in answers if a["item_id"] != sample.item_id]
    for found, expected in zip(content["answers"], others, strict=True):
        # The stored embedding was normalised and is not, to the last bit, what is encoded anew.
        assert found["item_id"] == expected["item_id"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert found["labels"] == expected["labels"]


def test_edits_of_all_kinds_weights_and_rank(query, calibrated, calibrated_gallery):
    asked = ("--bundle", calibrated.path, "--gallery", calibrated_gallery)
    asked += ("--item", "test-000000-000")
    edits = ("--unset", "colour=red", "--unset", "colour=blue", "--more", "border=white")
    done = query(*asked, *edits, "--must", "colour", "--weight", "shape=0.5", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["rank"] == "match"
    assert content["edits"] == {"colour": "not red or blue", "border": "more white"}
    assert all(a["matches"]["colour"]["value"] == "green" for a in content["answers"])
    done = query(*asked, "--set", "shape=disc", "--rank", "distance", "--like", "shape")
    assert done.returncode == 0, done.stderr
    assert "known of it: " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--item", "x", "--set", "color=red"), "unknown attribute 'color'; did you mean"),
        (("--item", "x", "--set", "colour"), "--set: expected ATTRIBUTE=VALUE, found 'colour'"),
        (("--item", "x", "--set", "colour=red", "--set", "colour=blue"), "'red' and 'blue'"),
        (("--item", "x", "--unset", "colour"), "--unset: expected ATTRIBUTE=VALUE, found 'colour'"),
        (
            ("--item", "x", "--set", "colour=red", "--unset", "colour=red"),
            "--unset: 'colour': found two edits, 'red' and 'not red'",
        ),
        (("--item", "x", "--weight", "shape=heavy"), "--weight: expected ATTRIBUTE=NUMBER, found"),
        (("--item", "x", "--must", "shape"), "must: expected an edited attribute"),
        (("--item", "x", "--rank", "match"), "'match' needs a calibrated bundle"),
        (("--set", "colour=red"), "expected one of --image and --item"),
        (("--image", "none.jpg"), "none.jpg: no such file"),
        (("--item", "test-000000-00X"), "no item 'test-000000-00X'"),
        (("--item", "x", "--k", "0"), "--k: expected at least 1, found 0"),
        (("--item", "x", "--picture", "answer.docx"), "answer.docx: expected a file name"),
        # Pillow reads these and does not write them.
        (("--item", "x", "--picture", "answer.psd"), "answer.psd: expected a file name"),
    ],
)
def test_bad_input_gets_one_line_and_a_status(query, arguments, message):
    done = query(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_only_item_of_a_gallery_has_no_answer(query, tiny_shards, tmp_path):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(shards)
    (shard,) = index.split("val")
    lone = replace(shard, samples=1, members=shard.members[:1])
    replace(index, shards=(lone,)).write()
    done = query("--gallery", shards, "--item", "val-000000-000", "--set", "colour=blue")
    assert done.returncode == 1
    assert f"error: {shards}: expected items other than 'val-000000-000', found none" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_no_half_picture(query, tmp_path, little_room):
    assert query("--item", "test-000000-000").returncode == 0  # the gallery is cached
    little_room(3000)
    done = query("--item", "test-000000-000", "--picture", tmp_path / "answer.png")
    assert done.returncode == 1
    assert f"error: {tmp_path / 'answer.png'}: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("**/*.p*"))


def test_a_full_disk_leaves_no_half_gallery(query, tmp_path, little_room):
    little_room(3000)
    done = query("--item", "test-000000-000")
    assert done.returncode == 1
    assert "items.sqlite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("**/gallery-*"))
