"""Export of a model as a bundle, which is written only if it passes the parity gate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from adde.bundle import BUNDLE_NAME, CARD, FILES, GOLDEN, OPTIONAL_FILES, Bundle, Golden
from adde.errors import UserError
from adde.exporting import parity
from adde.exporting.card import arithmetic_note, model_card
from adde.exporting.drawing import Drawer, with_drawing
from adde.exporting.graphs import (
    EMBEDDED_BYTES,
    OPSET,
    OutfitGraph,
    TorchSession,
    write_drawing_graphs,
    write_graphs,
    write_outfit_graph,
)
from adde.exporting.precision import (
    LIMITS,
    Precision,
    calibration_pictures,
    candidates,
    reduce_precision,
)
from adde.files import atomic_path, require_writable, unexpected_entries
from adde.methods.adde.model import ADDE
from adde.methods.outfits.model import Bilinear
from adde.preprocess import Picture, Preprocess
from adde.schema import Labels
from adde.scoring import Calibration
from adde.serving.onnx.providers import Device, missing
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

GOLDEN_PICTURES = 4
PACKAGES = ("adde", "torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu", "numpy", "pillow")


@dataclass(frozen=True)
class OutfitHead:
    """An outfit head, and what names it."""

    head: Bilinear
    category: str
    """Attribute that says what kind of thing an item is."""
    source: Mapping[str, Any]

    def details(self) -> dict[str, Any]:
        """Its entry in bundle.json."""
        return {"category": self.category, "source": dict(self.source)}


def export_bundle(
    model: ADDE,
    index: ShardIndex,
    out: Path,
    retrieval: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    calibration: Calibration | None,
    precision: Precision = "fp32",
    allow_drop: float | None = None,
    split: str = "test",
    outfits: OutfitHead | None = None,
    drawer: Drawer | None = None,
) -> Bundle:
    """Write the bundle of a model to the folder `out`, replacing a bundle there.

    Args:
        model: on the CPU; it is set to eval mode.
        index: shards of the same catalogue; the parity gate runs on one of their splits.
        out: the bundle's folder: new, empty, or a bundle.
        retrieval: the run's metrics.json, or None.
        source: describes the run and its checkpoint.
        calibration: of the match score; None: the bundle ranks by distance only.
        precision: of the encoder. int8 includes the heads unless they lose too much.
        allow_drop: maximum loss of the split's metrics by reduced precision, in points; None: as in
            `adde.exporting.precision`.
        split: of the index.
        outfits: a head to complete outfits with, if the bundle is to have one.
        drawer: a decoder to draw edits with, if the bundle is to have one.

    Raises:
        UserError: `out` contains other files, the shards have another schema or lack the split, or
            the parity gate fails; `out` is then unchanged.
    """
    model.eval()
    model.schema.require_same(index.schema, "the checkpoint", str(index.root))
    require_replaceable(out)
    pictures, _ = next(read_split(model.preprocess, index, split))  # fails early if there are none
    torch_session = TorchSession(model)
    with atomic_path(out, BUNDLE_NAME) as folder:
        folder.mkdir()
        memory = write_graphs(model, folder)
        width = model.settings.width
        details = dict[str, Any](precision=precision, presence=model.settings.presence)
        if outfits is not None:
            details["outfits"] = outfits.details()
            write_outfit_graph(outfits.head, folder)
        if drawer is not None:
            details["drawing"] = drawer.details()
            shape = len(model.schema.sizes), width
            write_drawing_graphs(drawer.decoder, shape, folder)
        bundle = Bundle(folder, model.schema, model.preprocess, width, details, calibration)
        if precision == "fp32":
            report = compare(torch_session, bundle, index, split)
            parity.require_parity(report)
            golden, parts = make_golden(model, torch_session, pictures), "all"
        else:
            report, parts = reduce_encoder(
                *(torch_session, bundle, index, precision, allow_drop, split)
            )
            golden = make_golden(model, Session(bundle), pictures)
        if outfits is not None:
            golden = with_outfits(golden, outfits.head, Session(bundle))
        if drawer is not None:
            golden = with_drawing(golden, drawer.decoder, Session(bundle))
        golden.write(folder / GOLDEN)
        report["golden_error_allowed"] = LIMITS[precision].golden_error
        details |= {
            "parts": parts,
            "memory": memory,
            "opset": OPSET,
            "versions": package_versions(),
            "parity": report,
            "retrieval": retrieval,
            "source": dict(source),
        }
        bundle = replace(bundle, details=details)
        (folder / CARD).write_text(model_card(bundle), encoding="utf-8")
        bundle.write()
    return Bundle.read(out)


def is_up_to_date(
    out: Path,
    retrieval: Mapping[str, Any] | None,
    source: Mapping[str, Any],
    calibration: Calibration | None,
    precision: Precision = "fp32",
    allow_drop: float | None = None,
    split: str = "test",
    outfits: OutfitHead | None = None,
    drawer: Drawer | None = None,
) -> bool:
    """Return whether `out` already has, undamaged, what `export_bundle` would write.

    Arguments as in `export_bundle`; `source` must contain hashes of weights and shards.
    """
    try:
        bundle = Bundle.read(out)
    except UserError:
        return False
    wanted = {"retrieval": retrieval, "source": dict(source), "precision": precision}
    wanted["versions"] = package_versions()
    limit = LIMITS[precision].drop if allow_drop is None else allow_drop
    details, report = bundle.details, bundle.details["parity"]
    return (
        all(details[name] == value for name, value in wanted.items())
        and bundle.calibration == calibration
        and details.get("outfits") == (outfits and outfits.details())
        and details.get("drawing") == (drawer and drawer.details())
        and report.get("split") == split
        and (precision == "fp32" or report["drop"]["allowed"] == limit)
    )


def with_outfits(golden: Golden, head: Bilinear, session: Session) -> Golden:
    """Golden vectors with a few drawn outfits and their queries.

    Raises:
        UserError: onnxruntime's queries are not torch's.
    """
    count, _, values, _ = head.table.shape
    draws = np.random.default_rng(0)
    outfit = draws.random((len(golden.images), count, values), np.float32)
    with torch.no_grad():
        queries = OutfitGraph(head)(torch.from_numpy(outfit)).numpy()
    for size in parity.BATCH_SIZES:
        rows = np.arange(size) % len(outfit)
        error = parity.relative_error(queries[rows], session.complete(outfit[rows]))
        if not error <= parity.MAX_ERROR:
            raise UserError(
                f"onnxruntime does not complete outfits as torch does, no bundle is written: "
                f"expected an error of at most {parity.MAX_ERROR:g} at batch {size}, found "
                f"{error:.3g}; try another version of torch, onnx or onnxruntime"
            )
    return replace(golden, outfit=outfit, queries=queries)


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect a bundle."""
    return {package: version(package) for package in PACKAGES}


def reduce_encoder(
    torch_session: TorchSession,
    bundle: Bundle,
    index: ShardIndex,
    precision: Precision,
    allow_drop: float | None,
    split: str = "test",
) -> tuple[Any, str]:
    """Replace a float32 encoder by the smallest one that passes the gate.

    Returns:
        The parity report, and the parts with reduced precision.

    Raises:
        UserError: no candidate passes (with the metrics of the last), or the encoder is too large.
    """
    if (bundle.path / OPTIONAL_FILES[0]).exists():
        raise UserError(
            f"precision: expected fp32 for an encoder with external weights (above "
            f"{EMBEDDED_BYTES / 1e9:g} GB), found {precision}; the quantiser keeps them in one file"
        )
    limit = LIMITS[precision].drop if allow_drop is None else allow_drop
    assert limit is not None
    calibration = calibration_pictures(index, bundle.preprocess) if precision == "int8" else []
    whole = bundle.encoder.read_bytes()
    *others, last = candidates(precision)
    for parts in (*others, last):
        bundle.encoder.write_bytes(whole)
        reduce_precision(bundle.path, precision, parts, calibration)
        report = compare(torch_session, bundle, index, split)
        try:
            parity.require_small_drop(report, limit, precision)
        except UserError as error:
            if parts == last:
                raise
            print(f"{parts}: {error}; trying fewer parts")
            continue
        return report, parts
    raise AssertionError("candidates is never empty")


def compare(
    torch_session: TorchSession, bundle: Bundle, index: ShardIndex, split: str = "test"
) -> Any:
    """Compute and print the parity report of the graphs in a bundle's folder."""
    batches = -(-index.count(split) // parity.BATCH_SIZES[-1])
    samples = tqdm(
        read_split(bundle.preprocess, index, split),
        "compare onnxruntime with torch",
        batches,
        unit="batch",
        leave=False,
        disable=None,
    )
    device = gate_device(bundle.details["precision"])
    report = parity.measure(
        torch_session, Session(bundle, device), samples, bundle.schema, bundle.calibration
    )
    report |= {"device": device, "split": split}
    print_report(report)
    if note := arithmetic_note(bundle.details["precision"], device):
        print(note)
    return report


def gate_device(precision: Precision) -> Device:
    """Return the device for the parity gate: CUDA for fp16 if available, else the CPU.

    On a CPU onnxruntime computes float16 convolutions and products in float32 between casts, which
    hides overflows that happen on a GPU.
    """
    return "cuda" if precision == "fp16" and not missing("cuda", precision) else "cpu"


def require_replaceable(out: Path) -> None:
    """Raise UserError if `out` is not writable, or replacing it would delete other files."""
    if out.name in ("", ".."):
        raise UserError(f"{out}: expected a bundle's own folder such as bundles/x; name one")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for the bundle, found a file; name another")
    known = {BUNDLE_NAME, *FILES, *OPTIONAL_FILES}
    if others := unexpected_entries(out, lambda name: name in known):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UserError(
            f"{out}: expected a new folder or one with nothing but a bundle, which is replaced, "
            f"found {', '.join(others[:3])}{more}; name another such as {out / 'x'}"
        )
    require_writable(out)


def read_split(
    preprocess: Preprocess, index: ShardIndex, split: str = "test"
) -> Iterator[tuple[Picture, Labels]]:
    """Yield pictures (B, S, S, 3) uint8 and labels (B, A) int64 of a split in batches."""
    samples = iterate(index, split)
    while batch := list(islice(samples, parity.BATCH_SIZES[-1])):
        pictures = np.stack([preprocess.load(sample.picture, sample.where) for sample in batch])
        yield pictures, np.stack([sample.labels for sample in batch])


def make_golden(model: ADDE, session: parity.EncodesAndEdits, pictures: Picture) -> Golden:
    """Compute golden vectors for a few of the pictures."""
    rows = np.unique(np.linspace(0, len(pictures) - 1, GOLDEN_PICTURES).astype(np.int64))
    images = pictures[rows]
    embeddings, logits, presence = session.encode(images)
    indicator = parity.random_edits(logits, model.schema)
    query = session.edit(embeddings, indicator)
    return Golden(images, embeddings, logits, indicator, query, presence)


def print_report(report: Any) -> None:
    """Print the parity report, one line per batch size."""
    for size, errors in report["errors_by_batch"].items():
        shown = "  ".join(f"{name} {error:.1e}" for name, error in errors.items())
        print(f"parity at batch {size:>2}: {shown}")
    points = {k: v for k, v in report["drop"]["points"].items() if v is not None}
    print("points below torch: " + ", ".join(f"{k} {v:.3f}" for k, v in points.items()))
    ranking = report[f"top{parity.TOP}"]
    if not ranking["queries"]:
        split = report.get("split", "test")
        print(f"parity of the top {parity.TOP}: not compared, the {split} split has no queries")
        return
    print(
        f"parity of the top {parity.TOP}: {ranking['identical']:.3%} of {ranking['queries']} "
        f"queries identical, {ranking['exchanged_ties']} of them but for exchanged ties"
    )
