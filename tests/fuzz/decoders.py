"""Fuzz readers of untrusted files: only UserError may be raised.

python tests/fuzz/decoders.py --seconds 600
python tests/fuzz/decoders.py --only parquet --first 1234 --count 1     # one input again

Each input is a small real file with a few bytes changed, by a generator seeded with its kind and
number, so that what is found is found again. A target runs in a process of its own, which a crash
of a library ends: that counts as found. Beside what is raised, memory is bounded.
"""

import argparse
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save_file

from adde.bundle import BUNDLE_NAME, CARD, ENCODER, GOLDEN, MEMORY, Bundle, Golden
from adde.errors import UserError
from adde.exporting.check import check_bundle
from adde.model.backbone import build_backbone
from adde.model.settings import ModelSettings
from adde.preprocess import MAX_PIXELS, Preprocess, decode
from adde.schema import Attribute, Schema
from adde.serving.gallery.base import Header
from adde.serving.http.requests.keys import Keys
from adde.serving.http.requests.picture_decoder import BROKEN, HEAD, reply
from adde.serving.onnx.session import Session
from adde.shards.catalogues.catalogue import Catalogue
from adde.shards.catalogues.pictures import picture_files, store
from adde.shards.catalogues.public.hf_dataset import read_saved_dataset
from adde.shards.catalogues.public.shapes3d import read_shapes3d
from adde.shards.catalogues.tables.table import read_table
from adde.shards.catalogues.tables.tabular import TableOptions
from adde.shards.checking.verify import verify
from adde.shards.index import INDEX_NAME, ShardIndex
from adde.shards.jpeg import decode_pixels
from adde.shards.packing.engine import engine
from adde.shards.packing.pack import PackOptions, pack
from adde.shards.reader import iterate
from adde.training.recipes import read_recipe

MEMORY_LIMIT = 8 << 30
SCHEMA = Schema((Attribute("colour", ("red", "blue")), Attribute("fit", ("slim", "wide"))))
INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0",
    b"\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0",
)
INTERESTING += (
    b"\xff\xff\xff\xff",
    b"\xff" * 8,
    b"[" * 3000,
    b'{"a":',
    b"null",
    b"-1",
    b"1e999",
    b"nan",
)


def damaged(content, others, generator):
    """Apply one to six changes to a file's content."""
    found = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        # Heads decide most, and are a small part of most files.
        end = len(found) if generator.random() < 0.5 else min(len(found), 400)
        at = generator.randrange(end + 1) if end else 0
        length = generator.choice((1, 2, 4, 16, generator.randint(1, 1 + len(found) // 4)))
        match generator.randrange(7):
            case 0 if found:
                found[at % len(found)] ^= 1 << generator.randrange(8)
            case 1:
                found[at : at + length] = generator.randbytes(length)
            case 2:
                piece = generator.choice(INTERESTING)
                found[at : at + len(piece)] = piece
            case 3:
                found[at:at] = generator.choice((generator.randbytes(length), *INTERESTING))
            case 4:
                del found[at : at + length]
            case 5:
                other = generator.choice(others)
                start = generator.randrange(len(other) + 1)
                found[at : at + length] = other[start : start + length]
            case _ if generator.random() < 0.3:
                del found[at:]
    return bytes(found)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 4)).astype(np.uint8)
    noise[:, 20:] = 90  # a part that is compressed well
    rgb, rgba = Image.fromarray(noise[:, :, :3]), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0128] = 6, "a picture", 2
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    frames = [rgb, rgb.rotate(90), rgb]
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    return [
        saved(rgb, "JPEG", exif=exif, quality=80),
        saved(rgb, "JPEG", progressive=True, comment=b"x"),
        saved(rgb.convert("CMYK"), "JPEG"),
        saved(rgb, "MPO", save_all=True, append_images=frames),
        saved(rgb, "PNG", exif=exif),
        saved(rgba, "PNG"),
        saved(deep, "PNG"),
        saved(rgb.quantize(8), "PNG", transparency=1),
        saved(rgb, "PNG", save_all=True, append_images=frames),
        saved(rgb, "WEBP", exif=exif),
        saved(rgba, "WEBP", lossless=True),
        saved(rgb, "WEBP", save_all=True, append_images=frames),
        saved(rgb, "TIFF", exif=exif),
        saved(rgb, "TIFF", compression="tiff_lzw"),
        saved(rgb, "GIF"),
        saved(rgb, "BMP"),
        saved(rgb, "JPEG2000"),
        saved(rgb, "ICO"),
        saved(rgb, "TGA"),
        saved(rgb, "DDS"),
    ]


def read_picture(path):
    content, found = path.read_bytes(), []
    for read in (
        lambda: decode(content, "picture", 8),
        lambda: store(content, "picture", 16),
        lambda: decode_pixels(content, "picture", 8),
        lambda: Preprocess(8).load(path),
    ):
        try:
            read()
        except UserError as error:
            found.append(error)
    kind = reply(HEAD.pack(8, MAX_PIXELS, b"crop") + content)[0]
    assert kind <= BROKEN, kind
    if found:
        raise found[0]


def graph(inputs, outputs, nodes, constants=()):
    def named(tensors):
        return [helper.make_tensor_value_info(*tensor) for tensor in tensors]

    values = [numpy_helper.from_array(array, name) for name, array in constants]
    made = helper.make_graph(nodes, "g", named(inputs), named(outputs), values)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def write_bundle(folder):
    """Write a bundle of small graphs."""
    f32, u8, node = TensorProto.FLOAT, TensorProto.UINT8, helper.make_node
    nodes = [
        node("Cast", ["images"], ["x"], to=f32),
        node("ReduceMean", ["x", "sides"], ["m"], keepdims=0),
        node("MatMul", ["m", "heads"], ["flat"]),
        node("Reshape", ["flat", "shape"], ["embeddings"]),
        node("MatMul", ["m", "classes"], ["logits"]),
    ]
    constants = {
        "sides": np.array([1, 2]),
        "heads": np.ones((3, 6), np.float32),
        "shape": np.array([-1, 2, 3]),
        "classes": np.ones((3, 4), np.float32),
    }
    images, indicator = ("images", u8, ["b", 8, 8, 3]), ("indicator", f32, ["b", 4])
    embeddings, logits = ("embeddings", f32, ["b", 2, 3]), ("logits", f32, ["b", 4])
    encoder = graph([images], [embeddings, logits], nodes, constants.items())
    (folder / ENCODER).write_bytes(encoder)
    nodes = [node("Flatten", ["embeddings"], ["query"])]
    memory = graph([embeddings, indicator], [("query", f32, ["b", 6])], nodes)
    (folder / MEMORY).write_bytes(memory)
    golden(folder / GOLDEN)
    (folder / CARD).touch()
    details = {key: {} for key in ("versions", "retrieval", "source")}
    details |= {"precision": "fp32", "parts": "all", "memory": "dense", "opset": 18}
    details |= {"parity": {"golden_error_allowed": 1.0}}
    Bundle(folder, SCHEMA, Preprocess(8), 3, details).write()


def golden(path):
    rows = [np.zeros((2, *shape), np.float32) for shape in ((2, 3), (4,), (4,), (6,))]
    Golden(np.zeros((2, 8, 8, 3), np.uint8), *rows).write(path)


def run_graph(path):
    """Run the graph as the encoder of an otherwise undamaged bundle."""
    folder = path.parent / "bundle"
    if not folder.exists():
        folder.mkdir()
        write_bundle(folder)
    bundle = Bundle.read(folder, verify=False)
    (folder / ENCODER).write_bytes(path.read_bytes())
    Session(bundle)
    bundle.write()
    check_bundle(folder)


def write_shards(folder):
    (folder / "images").mkdir(parents=True)
    names = [f"{row}.jpg" for row in range(6)]
    for name, content in zip(names, pictures()):
        (folder / "images" / name).write_bytes(content)
    splits = ["train", "train", "val", "val", "test", "test"]
    labels = np.array([[row % 2, row // 2 % 2] for row in range(6)])
    files = picture_files(folder / "images", names, names, 16)
    items = Catalogue("toy", SCHEMA, names, labels, splits, files)
    pack(items, folder / "shards", PackOptions(), engine("processes", 1))
    return folder / "shards"


def in_shards(name):
    """Read the damaged file as file `name` of a folder of shards."""

    def read(path):
        folder = path.parent / "shards"
        if not folder.exists():
            write_shards(path.parent / "of-shards").rename(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(path.read_bytes())
        try:
            index = ShardIndex.read(folder, check_files=False)
            for _ in verify(index, decode_pictures=True, workers=1):
                pass
            ShardIndex.read(folder)
            for split in index.splits:
                for _ in iterate(index, split):
                    pass
        finally:
            (folder / name).write_bytes(content)

    return read


def of_shards(name):
    with tempfile.TemporaryDirectory() as folder:
        return [(write_shards(Path(folder)) / name).read_bytes()]


def of_bundle(name):
    with tempfile.TemporaryDirectory() as folder:
        write_bundle(Path(folder))
        return [(Path(folder) / name).read_bytes()]


def read_bundle(path):
    folder = path.parent / "bundle"
    if not folder.exists():
        folder.mkdir()
        write_bundle(folder)
    (folder / BUNDLE_NAME).write_bytes(path.read_bytes())
    Bundle.read(folder)


def written(write, name):
    """Return what a library writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def columns():
    now = np.array(["2026-01-01"] * 30, "datetime64[us]")
    return pa.table(
        {
            "image": [f"{n}.jpg" for n in range(30)],
            "colour": pa.array(["red", None, "blue"] * 10).dictionary_encode(),
            "price": [1.5 * n for n in range(30)],
            "when": now,
            "parts": [[n] for n in range(30)],
            "raw": [b"\xff" * n for n in range(30)],
        }
    )


def tables():
    compressions = ("snappy", "zstd", "gzip", "none")
    return [
        written(
            lambda path, kind=kind: pq.write_table(columns(), path, compression=kind), "t.parquet"
        )
        for kind in compressions
    ]


def arrow_files():
    pictured = [{"bytes": content, "path": None} for content in pictures()[:10]]
    table = pa.table({"image": pictured, "colour": ["red", "blue"] * 5, "kind": [0, 1] * 5})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return [buffer.getvalue()]


FEATURES = {
    "image": {"_type": "Image"},
    "colour": {"_type": "Value", "dtype": "string"},
    "kind": {"_type": "ClassLabel", "names": ["a", "b"]},
}
OPTIONS = TableOptions(min_count=1, val_share=0.3, test_share=0.3)


def read_dataset(path, damaged_file="data.arrow"):
    folder = path.parent / path.stem
    folder.mkdir(exist_ok=True)
    (folder / "data.arrow").write_bytes(arrow_files()[0])
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    (folder / damaged_file).unlink()
    path.rename(folder / damaged_file)  # a name that is new, as files are kept open
    items = read_saved_dataset(folder, OPTIONS, 16)
    for row in range(len(items.item_ids)):
        items.source(row).read()


def shapes():
    def write(path, **options):
        with h5py.File(path, "w") as file:
            rows = np.arange(60)
            labels = np.stack([rows // 2**n % 2 for n in range(6)], axis=1).astype(float)
            file.create_dataset("images", data=np.zeros((60, 4, 4, 3), np.uint8), **options)
            file.create_dataset("labels", data=labels, **options)

    packed = {"compression": "gzip", "chunks": True}
    return [written(write, "s.h5"), written(lambda path: write(path, **packed), "s.h5")]


def read_shapes(path):
    path.with_suffix(".images.npy").unlink(missing_ok=True)
    items = read_shapes3d(path, TableOptions(val_share=0.2, test_share=0.2), 64)
    for row in range(len(items.item_ids)):
        items.source(row).read()


def weights():
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    small = {key: value[:1] for key, value in state.items() if value.ndim}
    return [
        written(lambda path: save_file(small, path), "w.safetensors"),
        written(lambda path: torch.save(small, path), "w.safetensors"),
    ]


def load_weights(path):
    for name in ("w.safetensors", "w.pth"):
        file = path.with_name(name)
        file.write_bytes(path.read_bytes())
        settings = ModelSettings(backbone="test_resnet", image_size=32, weights=file)
        try:
            build_backbone(settings)
        except UserError as error:
            found = error
    raise found  # of which there are too few for any network


def headers():
    def write(path):
        Header("embedded", "b" * 64, SCHEMA, 3, None, "source").write(path.parent)

    return [written(write, "gallery.json")]


def read_header(path):
    (path.parent / "gallery.json").write_bytes(path.read_bytes())
    Header.read(path.parent)


KEYS = b"# name: key, of at least 16 characters\nshop: 3f0c3f0c3f0c3f0c\nbatch: 91aa91aa91aa91aa\n"
RECIPES = Path(__file__).parents[2] / "train" / "recipes"

TARGETS = {
    "picture": (pictures, "x.jpg", read_picture),
    "golden": (lambda: [written(golden, "g.npz")], "g.npz", Golden.read),
    "onnx": (lambda: of_bundle(ENCODER), "g.onnx", run_graph),
    "bundle": (lambda: of_bundle(BUNDLE_NAME), "b.json", read_bundle),
    "header": (headers, "h.json", read_header),
    "index": (lambda: of_shards(INDEX_NAME), "i.json", in_shards(INDEX_NAME)),
    "tar": (lambda: of_shards("train-000000.tar"), "t.tar", in_shards("train-000000.tar")),
    "parquet": (tables, "t.parquet", read_table),
    "arrow": (arrow_files, "a.arrow", read_dataset),
    "features": (
        lambda: [json.dumps({"features": FEATURES}).encode()],
        "f.json",
        lambda path: read_dataset(path, "dataset_info.json"),
    ),
    "h5": (shapes, "s.h5", read_shapes),
    "weights": (weights, "w.bin", load_weights),
    "keys": (lambda: [KEYS], "k.txt", Keys),
    "recipe": (lambda: [p.read_bytes() for p in RECIPES.glob("*.toml")], "r.toml", read_recipe),
}
"""By kind: a maker of undamaged files, the name of a damaged one, and its reader."""


def attempt(kind, number, samples, folder):
    """Read damaged file `number` of a kind: "read", or "refused" with a UserError."""
    _, name, read = TARGETS[kind]
    generator = random.Random(zlib.crc32(f"{kind} {number}".encode()))
    path = folder / f"{number}{name}"
    path.write_bytes(damaged(generator.choice(samples), samples, generator))
    try:
        read(path)
        return "read"
    except UserError:
        return "refused"
    finally:
        path.unlink(missing_ok=True)


def run(kind, first, count, seconds, progress=None):
    """Count the outcomes of damaged files of one kind, starting at number `first`."""
    outcomes = Counter()
    end = time.monotonic() + seconds
    samples = TARGETS[kind][0]()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(first, first + count):
            if time.monotonic() > end:
                break
            if progress is not None:
                progress.write_text(str(number))
            started = time.monotonic()
            try:
                outcomes[attempt(kind, number, samples, Path(folder))] += 1
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                ours = [
                    f"{Path(f.filename).name}:{f.lineno}" for f in frames if "/adde/" in f.filename
                ]
                outcomes[f"FOUND {type(error).__name__} at {ours[-1:]}: {error}"[:200]] += 1
                print(
                    f"--only {kind} --first {number} --count 1: {error!r} {ours}", file=sys.stderr
                )
            if (took := time.monotonic() - started) > 10:
                outcomes["slow"] += 1
                print(f"--only {kind} --first {number} --count 1: {took:.0f} s", file=sys.stderr)
    return outcomes


def run_apart(kind, seconds):
    """Call `run` in a separate process, with a new one after each crash."""
    outcomes, first, end = Counter(), 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        progress, result = Path(folder) / "number", Path(folder) / "result"
        while (left := end - time.monotonic()) > 0:
            words = ["--only", kind, "--first", first, "--seconds", left, "--result", result]
            words += ["--progress", progress]
            done = subprocess.run([sys.executable, __file__, *map(str, words)])
            if result.exists():
                return outcomes + Counter(json.loads(result.read_text()))
            first = int(progress.read_text()) + 1
            outcomes[f"FOUND a process that ended with {done.returncode}"] += 1
            outcomes["tried before a crash"] += 1
            print(f"--only {kind} --first {first - 1} --count 1: crashed", file=sys.stderr)
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="in all, shared by the kinds")
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1 << 60)
    parser.add_argument("--progress", type=Path)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    if asked.only:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        found = run(asked.only, asked.first, asked.count, asked.seconds, asked.progress)
        if asked.result:
            asked.result.write_text(json.dumps(found))
        else:
            print(dict(found))
        return
    bad = 0
    for kind in TARGETS:
        found = run_apart(kind, asked.seconds / len(TARGETS))
        print(f"{kind:10} {dict(found)}", flush=True)
        bad += sum(count for outcome, count in found.items() if outcome.startswith("FOUND"))
    sys.exit(f"{bad} inputs ended in something else than a UserError" if bad else 0)


if __name__ == "__main__":
    main()
