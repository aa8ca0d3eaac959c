"""The program shards/build.py, and its summary."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections import Counter
from functools import partial

import pytest
from programs import command, run

from adde.errors import UserError
from adde.shards.catalogues.tables.tabular import TableOptions, read_catalogue
from adde.shards.checking.verify import verify
from adde.shards.index import ShardIndex
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.packing.summary import as_text
from adde.shards.packing.work_folder import work_folder
from adde.shards.reader import iterate

HERE = engine("processes", 1)
build = partial(run, "build.py")


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_table_is_packed_once(shop, rows, tmp_path):
    table, images = shop(rows)
    out = tmp_path / "shards"
    words = ("--catalogue", table, "--images", images, "--out", out, "--group-by", "family")
    words += ("--val-share", 0.2, "--test-share", 0.2, "--attributes", "colour", "sleeve")
    first = build(*words)
    assert first.returncode == 0, first.stderr
    index = ShardIndex.read(out)
    assert index.name == "items"
    assert index.schema.names == ("sleeve", "colour")
    assert sum(index.count(split) for split in index.splits) == 60
    before = content(out)
    assert set(before) == {"build.json", "index.json", "index.members", "summary.json"} | {
        shard.name for shard in index.shards
    }
    again = build(*words, "--workers", 1)
    assert "nothing to do" in again.stdout
    assert content(out) == before
    # A changed picture or a truncated shard is noticed.
    (images / "30.jpg").write_bytes((images / "31.jpg").read_bytes())
    changed = build(*words)
    assert "1 pictures that several items have:\n  " in changed.stdout
    assert content(out) != before
    before = content(out)
    table.write_text(table.read_text().replace("00.jpg,short,red", "00.jpg,short,blue"))
    assert build(*words).returncode == 0
    assert content(out) != before
    shard = out / index.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-512])
    assert "nothing to do" not in build(*words).stdout
    ShardIndex.read(out)


def test_summary_counts_what_was_written(shop, rows, tmp_path):
    table, images = shop(rows)
    (images / "07.jpg").write_bytes(b"not a picture")
    (images / "20.jpg").write_bytes((images / "40.jpg").read_bytes())
    rows = [{**row, "split": "test" if i % 4 == 0 else "train"} for i, row in enumerate(rows)]
    rows[20]["split"] = "train"
    table.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    options = TableOptions(attributes=("sleeve", "colour"), val_share=0)
    catalogue = read_catalogue(table, images, options, 64)
    summary = pack(catalogue, tmp_path / "out", PackOptions(skip_unreadable=True), HERE)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    kept = [row for row in rows if row["image"] != "07.jpg"]
    assert summary["items"] == Counter(row["split"] for row in kept)
    for name in ("sleeve", "colour"):
        entry = summary["attributes"][name]
        for value, counts in entry["values"].items():
            shown = Counter(row["split"] for row in kept if row[name] == value)
            assert counts == {split: shown[split] for split in counts}
        assert entry["missing"] == sum(not row[name] for row in kept) / len(kept)
    # In both splits, every item with a sleeve has one that differs only in the colour.
    assert summary["one_edit_neighbour"]["train"]["in_split"] == 1
    assert summary["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("out/*.tar"))
    (twins,) = summary["duplicates"]
    assert dict(zip(twins["item_ids"], twins["splits"])) == {"20.jpg": "train", "40.jpg": "test"}
    (unreadable,) = summary["unreadable"]
    assert unreadable.startswith(f"{images / '07.jpg'}: expected a picture that decodes")
    text = as_text(summary)
    blue = summary["attributes"]["colour"]["values"]["blue"]
    share = f"{sum(blue.values()) / 59:.1%}"
    assert re.search(rf"\n {{9}}  blue +{blue['train']} +{blue['test']} +{share}\n", text)
    assert "20.jpg (train) = 40.jpg (test)" in text or "40.jpg (test) = 20.jpg (train)" in text
    assert "warning: 1 pictures are in several splits" in text
    assert "1 pictures that cannot be read were left out:" in text


def test_long_lists_are_cut_short_in_the_text():
    values = {f"v{number}": {"train": number} for number in range(30)}
    summary = {
        "name": "long",
        "items": {"train": 435},
        "shards": 1,
        "bytes": 10_000_000,
        "attributes": {"a": {"values": values, "missing": 0.0}},
        "one_edit_neighbour": {},
        "duplicates": [],
        "unreadable": [f"{number}.jpg: no" for number in range(25)],
        "notices": ["heed this"],
    }
    text = as_text(summary)
    assert "long: 435 items (train 435) in 1 shards, 10.0 MB\nnote: heed this\n" in text
    assert "and 10 more values" in text
    assert re.search(r"\na +v29 +29 +6.7%\n", text)  # the most frequent comes first
    assert "v9 " not in text
    assert "25 pictures that cannot be read were left out:" in text
    assert text.endswith("19.jpg: no\n  and 5 more")


def test_embedded_catalogues(tmp_path):
    out = tmp_path / "out"
    words = ("--items", 60, "--size", 32, "--out", out, "--workers", 1)
    built = []
    for extra in (("wardrobe",), ("wardrobe-hard",), ("wardrobe-hard", "--seed", 1)):
        assert build("--catalogue", *extra, *words).returncode == 0
        index = ShardIndex.read(out)
        assert (index.name, sum(shard.samples for shard in index.shards)) == (extra[0], 60)
        assert set(index.splits) == {"train", "val", "test"}
        built.append(content(out))
    # Each replaced the previous one.
    assert built[1] != built[2]
    assert "nothing to do" in build("--catalogue", *extra, *words).stdout


def test_bad_pictures_stop_a_build_until_they_are_repaired(shop, rows, tmp_path):
    table, images = shop(rows)
    out = tmp_path / "shards"
    words = ("--catalogue", table, "--images", images, "--out", out)
    assert build(*words).returncode == 0
    before = content(out)
    (images / "12.jpg").write_bytes((images / "12.jpg").read_bytes()[:100])
    (images / "13.jpg").unlink()
    failed = build(*words)
    assert failed.returncode == 1
    assert "2 pictures cannot be read" in failed.stderr
    assert f"{images / '12.jpg'}: expected a picture that decodes" in failed.stderr
    assert "items.csv, line 15: expected a picture file" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert content(out) == before  # the existing shards stay
    left = content(tmp_path / ".shards.partial")  # finished shards and their receipts
    assert {name.removesuffix(".receipt") for name in left} <= {
        shard.name for shard in ShardIndex.read(out).shards
    }
    assert f"{len(left) // 2} finished shards are kept in" in failed.stderr
    skipped = build(*words, "--skip-unreadable")
    assert skipped.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"images", "items.csv", "shards"}
    assert sum(shard.samples for shard in ShardIndex.read(out).shards) == 58


def test_a_full_disk_leaves_nothing_behind(shop, rows, tmp_path):
    table, images = shop(rows, side=64)

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    words = ("--catalogue", table, "--images", images, "--out", tmp_path / "shards")
    failed = build(*words, "--workers", 1, preexec_fn=little_room)
    assert failed.returncode == 1
    assert "File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"images", "items.csv"}


@pytest.mark.parametrize(
    ("name", "status"),
    [("SIGTERM", 143), ("SIGINT", -signal.SIGINT), ("SIGKILL", -signal.SIGKILL)],
)
def test_an_interrupted_build_continues(tmp_path, name, status):
    # Small enough to start soon, large enough to be running when the signal arrives.
    words = ("--catalogue", "wardrobe", "--items", 300, "--size", 32, "--items-per-shard", 10)
    words = (*words, "--workers", 2, "--out", tmp_path / "shards")
    # A background job and all its children would ignore Ctrl-C.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command("build.py", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, ignored)
    deadline = time.monotonic() + 60
    partial = tmp_path / ".shards.partial"
    while len(list(partial.glob("*.receipt"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    send = os.killpg if name == "SIGINT" else os.kill  # Ctrl-C goes to the whole group
    send(process.pid, signal.Signals[name])
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert stderr.count(b"Traceback") <= 1  # workers print nothing
    try:
        while group_lives(process.pid):  # workers and Python's resource tracker exit soon
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".shards.partial"]
    finished = {path.stem: (partial / path.stem).stat() for path in partial.glob("*.receipt")}
    assert len(finished) >= 3
    if name != "SIGKILL":
        assert f"{len(finished)} finished shards are kept in {partial}".encode() in stderr
        assert len(list(partial.iterdir())) == 2 * len(finished)
    again = build(*words)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    for shard, status in finished.items():
        found = (tmp_path / "shards" / shard).stat()
        assert (found.st_ino, found.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    index = ShardIndex.read(tmp_path / "shards")
    assert sum(shard.samples for shard in index.shards) == 300
    assert len(list(verify(index, decode_pictures=False, workers=1))) == 0


def test_leftovers_of_another_build_are_not_used(shop, rows, tmp_path):
    words = ("--catalogue", "wardrobe", "--size", 16, "--out", tmp_path / "out", "--workers", 1)
    assert build(*words, "--items", 90).returncode == 0
    whole = content(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.partial")
    (tmp_path / ".out.partial" / "train-000000.tar.receipt").write_text('{"job": "another"}')
    (tmp_path / ".out.partial" / "train-000099.tar").write_bytes(b"of another catalogue")
    assert build(*words, "--items", 90).returncode == 0
    assert content(tmp_path / "out") == whole


def test_two_builds_into_one_folder(tmp_path):
    with work_folder(tmp_path / "out"):
        failed = build("--catalogue", "wardrobe", "--items", 60, "--out", tmp_path / "out")
    assert failed.returncode == 1
    assert "out: another process is packing into it" in failed.stderr


def group_lives(leader):
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_folders_of_something_else_are_not_replaced(shop, rows, tmp_path):
    table, images = shop(rows)
    catalogue = read_catalogue(table, images, TableOptions(), 64)
    with pytest.raises(UserError, match=r"images: expected a new folder .* found '00\.jpg' in it"):
        pack(catalogue, images, PackOptions(), HERE)
    with pytest.raises(UserError, match=r"items\.csv: expected a folder, found a file"):
        pack(catalogue, table, PackOptions(), HERE)
    assert len(list(images.iterdir())) == 60
    # An empty folder, or a link to one, may be used.
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    pack(catalogue, tmp_path / "link", PackOptions(), HERE)
    assert (tmp_path / "link").is_symlink()
    assert len(list(iterate(ShardIndex.read(tmp_path / "empty"), "train"))) > 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--catalogue", "wardrob"), "wardrob: expected a CSV or Parquet file, found none"),
        (("--catalogue", "wardrobe", "--items", 3), "items: expected at least 60"),
        (("--catalogue", "x.csv", "--size", 0), "--size: expected at least 1 pixel, found 0"),
        (("--catalogue", "celba:x"), "unknown kind 'celba'; did you mean 'celeba'?"),
        (("--catalogue", "wardrobe", "--size", 2), "size: expected 16 to 1024 pixels, found 2"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, words, message):
    failed = build(*words, "--out", tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert message in failed.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,colour\n", "items.csv: "),
        ("name,colour\na,red\nb,blue\n", "image"),
        ("image,colour\nnone.jpg,red\ngone.jpg,blue\n", "none.jpg"),
    ],
    ids=["no rows", "no image column", "no files"],
)
def test_a_catalogue_without_images_is_refused(tmp_path, table, message):
    (tmp_path / "items.csv").write_text(table)
    failed = build("--catalogue", tmp_path / "items.csv", "--out", tmp_path / "out")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[0].startswith("error: "), failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()
