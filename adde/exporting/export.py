"""Model in, bundle folder out: whole and proven, or not there."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adde.bundle import GOLDEN, Bundle, Golden
from adde.exporting import parity
from adde.exporting.graphs import OPSET, TorchSession, write_graphs
from adde.files import atomic_path
from adde.model import ADDE
from adde.preprocess import Picture
from adde.schema import Labels
from adde.serving.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

SPLIT = "test"
GOLDEN_PICTURES = 4
PACKAGES = ("adde", "torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "numpy", "pillow")


def export_bundle(
    model: ADDE,
    index: ShardIndex,
    out: Path,
    retrieval: Mapping[str, Any] | None,
    source: Mapping[str, Any],
) -> Bundle:
    """Writes the bundle of a model into the folder `out`, in place of what is there.

    Args:
        model: on the CPU; it is put in eval mode.
        index: shards of the same catalogue, whose test split proves the export.
        out: the bundle's folder.
        retrieval: the run's metrics.json, or None where it has none.
        source: what names the run and its checkpoint.

    Raises:
        UserError: the shards have another schema or no test split, or the parity gate fails;
            `out` is then as it was.
    """
    model.eval()
    model.schema.require_same(index.schema, "the checkpoint", str(index.root))
    pictures, labels = load_split(model, index)
    torch_session = TorchSession(model)
    with atomic_path(out) as folder:
        folder.mkdir()
        write_graphs(model, folder)
        golden = make_golden(model, torch_session, pictures)
        golden.write(folder / GOLDEN)
        bundle = Bundle(folder, model.schema, model.preprocess, model.settings.width, {})
        report = parity.measure(torch_session, Session(bundle), pictures, labels, model.schema)
        print_report(report)
        parity.require(report)
        details = {
            "precision": "fp32",
            "opset": OPSET,
            "versions": {package: version(package) for package in PACKAGES},
            "parity": report,
            "retrieval": retrieval,
            "source": dict(source),
        }
        replace(bundle, details=details).write()
    return Bundle.read(out)


def load_split(model: ADDE, index: ShardIndex) -> tuple[Picture, Labels]:
    """Pictures (N, S, S, 3) uint8 and labels (N, A) int64 of the test split, as stored."""
    side, count = model.preprocess.size, index.count(SPLIT)
    samples = iterate(index, SPLIT)
    pictures = np.empty((count, side, side, 3), np.uint8)
    labels = np.empty((count, len(index.schema.sizes)), np.int64)
    bar = tqdm(samples, f"read {SPLIT}", count, unit="picture", leave=False, disable=None)
    for row, sample in enumerate(bar):
        pictures[row] = model.preprocess.load(sample.picture, sample.where)
        labels[row] = sample.labels
    return pictures, labels


def make_golden(model: ADDE, session: TorchSession, pictures: Picture) -> Golden:
    """Golden vectors of a few pictures spread over the split."""
    rows = np.unique(np.linspace(0, len(pictures) - 1, GOLDEN_PICTURES).astype(np.int64))
    images = pictures[rows]
    embeddings, logits = session.encode(images)
    indicator = parity.random_edits(logits, model.schema)
    return Golden(images, embeddings, logits, indicator, session.edit(embeddings, indicator))


def print_report(report: Any) -> None:
    """The parity figures, a line per batch size."""
    for size, errors in report["errors_by_batch"].items():
        shown = "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"parity at batch {size:>2}: {shown}")
    ranking = report[f"top{parity.RANKS}"]
    print(
        f"parity of the top {parity.RANKS}: {ranking['identical']:.3%} of {ranking['queries']} "
        f"queries identical, {ranking['exchanged_ties']} of them but for exchanged ties"
    )
