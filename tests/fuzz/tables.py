"""Fuzz the readers of tables and lists: only UserError may be raised.

    python tests/fuzz/tables.py --minutes 10 --folder /tmp/fuzz

Each round spoils one file of a small tree (CSV, Parquet, a folder of Parquet, CelebA, DeepFashion,
the support files, a saved Hugging Face dataset), and reads it as shards/build.py and
serve_onnx/build_gallery.py --fields do. What raises anything else is kept in the folder with its
seed; should the process die, what killed it is the folder `current-<seed>`.
"""

import faulthandler
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from adde.errors import UserError
from adde.schema import Attribute, Schema
from adde.serving.gallery.field_table import FieldTable
from adde.shards.catalogues.importers import open_catalogue

sys.path.insert(0, str(Path(__file__).parents[1] / "shards"))
from trees import (
    png,
    write_asen,
    write_celeba,
    write_deepfashion,
    write_fashionai,
    write_polyvore,
    write_saved_dataset,
    write_support,
    write_zappos,
)

SCHEMA = Schema((Attribute("colour", ("red", "green")),))

TOKENS = [
    *(b",", b";", b"\t", b"|", b'"', b'""', b"'", b"\n", b"\r\n", b"\r", b"\x00", b"\xff\xfe"),
    *(b"\xfe\xff", b"\xef\xbb\xbf", b"\xe9", "é".encode(), "e\u0301".encode(), b"\xc2\xa0"),
    *(b"NaN", b"N/A", b"null", b"none", b"-1", b"1e999", b"inf", b"1,045.00", b"12,90", b"0x1"),
    *(b"9" * 30, b"-", b"..", b"../", b"/", b"C:\\", b"sep=;\n", b'="1"', b" ", b"", b"train"),
    *(b"test", b"\xf0\x9f\x91\x97", b"\xed\xa0\x80", b"a" * 5000, "١٢".encode(), "²".encode()),
]


@dataclass(frozen=True)
class Target:
    """A tree whose files are mutated, and its reader."""

    files: str
    """Pattern of the mutated files."""
    read: Callable[[Path], object]


def catalogue(name: str) -> Callable[[Path], object]:
    """Read a tree like shards/build.py."""

    def read(root: Path) -> object:
        found = open_catalogue(name.format(root), skip_unreadable=bool(random.randrange(2)))
        sources = [found.source(row) for row in range(len(found.item_ids))]
        return [source.stamp() for source in sources], sources[0].read()

    return read


def fields(name: str) -> Callable[[Path], object]:
    """Read a table of fields like serve_onnx/build_gallery.py."""

    def read(root: Path) -> object:
        commas = ("price",) * random.randrange(2)
        table = FieldTable(
            root / name, "image", (), SCHEMA, decimal_comma=commas, skip_unreadable=True
        )
        return [table.fields(f"{row:02d}.png") for row in range(40)]

    return read


def write_trees(root: Path) -> None:
    """Write small undamaged trees."""
    rng = random.Random(0)
    rows = [
        {
            "image": f"{row:02d}.png",
            "colour": rng.choice(["red", "grün", ""]),
            "sleeve": rng.choice(["long", "short", "NaN"]),
            "split": ("train", "train", "train", "val", "test")[row % 5],
            "price": f"{row}.90",
            "note": rng.choice(['a "b", c', "two\nlines", "x"]),
        }
        for row in range(40)
    ]
    names = list(rows[0])
    for folder in ("csv", "utf16", "parquet", "parts"):
        (root / folder).mkdir(parents=True)
        for row in rows:
            (root / folder / row["image"]).write_bytes(png(1))
    quoted = ['"' + row[n].replace('"', '""') + '"' for row in rows for n in names]
    lines = [";".join(names), *(";".join(quoted[at : at + 6]) for at in range(0, len(quoted), 6))]
    (root / "csv" / "items.csv").write_text("\n".join(lines), encoding="utf-8")
    (root / "utf16" / "items.csv").write_text("\n".join(lines), encoding="utf-16")
    columns: dict[str, pa.Array] = {n: pa.array([row[n] or None for row in rows]) for n in names}
    columns["price"] = pa.array([row + 0.9 for row in range(40)], pa.float32())
    columns["sleeve"] = columns["sleeve"].dictionary_encode()
    table = pa.table(columns)
    pq.write_table(table, root / "parquet" / "items.parquet")
    parts = root / "parts" / "items"
    for name in ("season=summer", "season=winter"):
        (parts / name).mkdir(parents=True)
    pq.write_table(table[:20], parts / "season=summer" / "0.parquet")
    pq.write_table(table[20:], parts / "season=winter" / "1.parquet")
    items = [(rng.choice([-1, 1]), rng.choice([-1, 1]), row % 3, row % 7) for row in range(30)]
    write_celeba(root / "celeba", items)
    images = [f"img/{row}.png" for row in range(30)]
    flags = [{row % 3: 1, 3: 1} for row in range(30)]
    parts_of = ("train", "val", "test")
    write_deepfashion(
        root / "deepfashion",
        [(images[r], r % 2 + 1, flags[r], parts_of[r % 3]) for r in range(30)],
    )
    labels = [[row % 3, row % 2] for row in range(30)]
    write_support(root / "support", labels, labels, (3, 2), [(0, [-1, 1, 0, 0, 0], [1, 0])])
    shoes = [(("Boots", "Shoes")[row % 2], "Zip;Lace", "Men", "Flat") for row in range(30)]
    triplets = {("class", "val"): [(6, 7, 8)], ("class", "test"): [(0, 1, 2), (3, 4, 5)]}
    write_zappos(root / "zappos", shoes, triplets)
    values = {"sleeve": ["Short", "Long"], "collar": ["Invisible", "Shirt"]}
    asked = {("query", "test"): ["0 0 1", "1 1 0"], ("candidate", "test"): ["2 0 1", "3 1 1"]}
    known = [f"{row} 0 {row % 2} 1 {row // 2 % 2}" for row in range(10)]
    write_asen(root / "asen", values, {"train": 10, "valid": 5, "test": 5}, known, asked)
    write_fashionai(root / "fashionai", [("neck_labels", ("yn", "my")[r % 2]) for r in range(30)])
    outfits = {
        part: {f"{k}{n}": [f"{k}{n}a", f"{k}{n}b"] for n in range(5)}
        for k, part in enumerate(("train", "valid", "test"), 1)
    }
    ids = [item for found in outfits.values() for outfit in found.values() for item in outfit]
    kinds = {item: (item[-1], "1", "one") for item in ids}
    questions = [(["30_1"], ["30_2", "31_2", "32_2"])] * 3
    write_polyvore(root / "polyvore", "disjoint", outfits, kinds, questions, ["1 30_1 31_2"] * 3)
    saved = [(row, row % 2, ("red", "blue")[row % 2]) for row in range(30)]
    write_saved_dataset(root / "hf", {"train": saved, "test": saved})


TARGETS = {
    "csv": Target("items.csv", catalogue("{}/items.csv")),
    "csv fields": Target("items.csv", fields("items.csv")),
    "utf16": Target("items.csv", catalogue("{}/items.csv")),
    "parquet": Target("items.parquet", catalogue("{}/items.parquet")),
    "parquet fields": Target("items.parquet", fields("items.parquet")),
    "parts": Target("items/*/*.parquet", lambda root: fields("items")(root)),
    "celeba": Target("*/*.txt", catalogue("celeba:{}")),
    "deepfashion": Target("*/*.txt", catalogue("deepfashion:{}")),
    "support": Target("*.txt", catalogue("support:{}")),
    "zappos": Target("**/*.[cjt][sx]*", catalogue("zappos:{}")),
    "asen": Target("*.[tj]*", catalogue("asen:{}")),
    "fashionai": Target("base/Annotations/*", catalogue("fashionai:{}")),
    "polyvore": Target("**/*.[tjc][xs]*", catalogue("polyvore:{}/disjoint")),
    "hf": Target("**/*.[ja]*", catalogue("hf:{}")),
}


def spoil(content: bytes, rng: random.Random) -> bytes:
    """Mutate a few bytes, lines or tokens."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + rng.choice([1, 2, 8, 100]))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            data[at:end] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:at] = data[at:end] * rng.choice([1, 3])
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            lines = bytes(data).split(b"\n")
            rng.shuffle(lines) if rng.randrange(4) == 0 else lines.pop(rng.randrange(len(lines)))
            data = bytearray(b"\n".join(lines))
        elif rng.randrange(4) == 0:
            del data[at:]
    return bytes(data)


def attempt(name: str, trees: Path, current: Path, seed: int) -> str:
    """Mutate and read one tree; return the kind of outcome."""
    rng = random.Random(seed)
    random.seed(seed)
    target, tree = TARGETS[name], trees / name.split()[0]
    shutil.copytree(tree, current, copy_function=os.link)
    path = rng.choice(sorted(path for path in current.glob(target.files) if path.is_file()))
    content = spoil(path.read_bytes(), rng)
    path.unlink()  # the tree's own file stays
    path.write_bytes(content)
    try:
        target.read(current)
    except UserError:
        return "UserError"
    return "read"


def fuzz(folder: Path, minutes: float = 10, seed: int = 0, rounds: int | None = None) -> int:
    """Run rounds over all targets; print the outcomes, return the number of faults.

    Args:
        folder: of the trees and of what is found; new or of a run before.
        minutes: how long.
        seed: of the first round; a round with the same seed spoils the same.
        rounds: so many at most.
    """
    faulthandler.enable()
    trees = folder / "trees"
    if not trees.exists():
        write_trees(trees)
    for name in TARGETS:  # whole, each is read
        tree = trees / name.split()[0]
        TARGETS[name].read(tree)
    came, faults = Counter[str](), Counter[str]()
    end, slowest = time.monotonic() + 60 * minutes, (0.0, "", 0)
    number = seed
    while time.monotonic() < end and (rounds is None or number < seed + rounds):
        name = list(TARGETS)[number % len(TARGETS)]
        started = time.monotonic()
        # A folder of its own: readers may remember files by their paths.
        current = folder / f"current-{number}"
        try:
            came[f"{name}: {attempt(name, trees, current, number)}"] += 1
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{name}: {type(error).__name__} at {where.filename}:{where.lineno}: {error}"
            kind = kind[:200]
            if not faults[kind]:
                shutil.copytree(current, folder / f"fault-{number}")
                print(f"seed {number}: {traceback.format_exc()}", flush=True)
            faults[kind] += 1
        shutil.rmtree(current, ignore_errors=True)
        slowest = max(slowest, (time.monotonic() - started, name, number))
        number += 1
    print(json.dumps({"rounds": number - seed, "slowest": slowest, "came": came}, indent=1))
    print(f"{sum(faults.values())} faults: {json.dumps(faults, indent=1)}")
    return sum(faults.values())


if __name__ == "__main__":
    sys.exit(1 if tyro.cli(fuzz) else 0)
