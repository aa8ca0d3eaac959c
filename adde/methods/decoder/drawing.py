"""The task `drawing`: how well drawn edits obey, as an independent judge sees them.

The catalogues `rooms` and `wardrobe` can be drawn again with other labels. For them an edit also
has a true picture, with which the drawn one is compared.
"""

from typing import Any

import numpy as np
import torch

from adde.drawing import overlaid
from adde.edits import LabelEdits, all_edits
from adde.errors import UserError
from adde.methods.adde.evaluation import memory_edit
from adde.methods.adde.model import ADDE
from adde.methods.adde.opening import FrozenEncoder, require_trained_on
from adde.methods.decoder.config import DecoderConfig
from adde.methods.decoder.evaluation import Items, draw, encode, obedience, psnr, targets_of
from adde.methods.decoder.judge import Judge, judge_of, represent_real
from adde.methods.decoder.model import StyledDecoder
from adde.methods.decoder.structure import ssim
from adde.metrics import attribute_accuracy, predicted_labels, unit
from adde.preprocess import Picture
from adde.ranking import top_k
from adde.schema import UNKNOWN, Labels, Rows
from adde.shards.catalogues.drawn.redraw import redraw
from adde.shards.reader import iterate
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator
from adde.training.method import Measured
from adde.training.recipes import CONFIG_NAME, read_recipe
from adde.training.watching.displays import Cell, Table

MOST = 1000
"""Edits of each kind at most."""

AT_ONCE = (1, 2)
"""Attributes that are edited at once."""

COLUMNS = ("wanted", "unchanged", "psnr", "ssim")

ROWS = {
    "drawn": "drawn",
    "overlaid": "drawn, laid over the picture",
    "retrieved": "nearest item of the split",
    "unedited": "unedited picture",
    "true": "true picture of the edit",
}


def measure(
    model: StyledDecoder, checkpoint: Checkpoint, evaluator: Evaluator, split: str, queries: int
) -> Measured:
    """Judge drawn edits of a split beside what they are compared with; see `Task`."""
    run, index = checkpoint.path.parents[1], evaluator.index
    config = read_recipe(run / CONFIG_NAME)
    assert isinstance(config, DecoderConfig)
    frozen = FrozenEncoder.open(config.encoder, index.schema, str(index.root))
    require_trained_on(model.encoder, frozen.weights, "decoder", str(frozen.checkpoint.path))
    encoder = frozen.model.to(evaluator.device)
    items = encode(model, encoder, evaluator, split)
    judge = judge_of(run, model.preprocess, evaluator)
    real = evaluator.encode(represent_real, judge, split)
    seen = predicted_labels(real.outputs["logits"], index.schema)
    content: dict[str, Any] = {
        "judge": attribute_accuracy(seen, real.labels, index.schema.names),
        "reconstruction": {n: float(items.encoded.outputs[n].mean()) for n in ("psnr", "kl")},
        "edits": {},
    }
    for count in AT_ONCE[: len(index.schema.sizes)]:
        edits, true = _edits(items, count, min(queries, MOST) or MOST)
        if len(edits):
            shown = _shown(encoder, items, edits, true)
            content["edits"][str(count)] = _judged(judge, shown, edits, items.labels, true)
    if not content["edits"]:
        raise UserError(f"{index.root}: expected known labels in the split {split!r}, found none")
    return Measured(content, as_text(content))


def _edits(items: Items, count: int, most: int) -> tuple[LabelEdits, Picture | None]:
    """Return at most `most` edits, and their true pictures if the catalogue can be drawn.

    Edits without a true picture are then left out, such as of a garment that an outfit hides.
    """
    index, labels, side = items.index, items.labels, items.model.side
    edits = all_edits(labels, count, 2 * most)
    ids = [sample.item_id for sample in iterate(index, items.split)]
    known = [ids[row] for row in items.encoded.rows.tolist()]

    def drawn_again(rows: Rows, wanted: Labels) -> list[Picture | None] | None:
        return redraw(index.name, [known[row] for row in rows], wanted, side)

    first = np.arange(min(4, len(labels)))
    again, stored = drawn_again(first, labels[first]) or [], items.pictures(first)
    # Others may be of another seed or size, or of a catalogue of this name by somebody else.
    same = [p is not None and np.array_equal(p, s) for p, s in zip(again, stored)]
    if not same or not all(same):
        return edits[_spread(len(edits), most)], None
    true = drawn_again(edits.reference, targets_of(edits, labels))
    assert true is not None
    there = np.flatnonzero([picture is not None for picture in true])
    there = there[_spread(len(there), most)]
    found = [picture for row in there.tolist() if (picture := true[row]) is not None]
    return edits[there], np.stack(found) if found else None


def _spread(count: int, most: int) -> Rows:
    """Return at most `most` of `count` rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _shown(
    encoder: ADDE, items: Items, edits: LabelEdits, true: Picture | None
) -> dict[str, Picture]:
    """Return the pictures that are judged, by the names of ROWS."""
    unchanged = LabelEdits(edits.reference, np.full_like(edits.values, UNKNOWN))
    own, drawn = (draw(encoder, items, one).pictures for one in (unchanged, edits))
    shown = {
        "drawn": drawn,
        "overlaid": overlaid(items.pictures(edits.reference), own, drawn),
        "retrieved": items.pictures(_nearest(encoder, items, edits)),
        "unedited": items.pictures(edits.reference),
    }
    return shown if true is None else {**shown, "true": true}


def _nearest(encoder: ADDE, items: Items, edits: LabelEdits) -> Rows:
    """Return the item of the split nearest to each edited embedding, never the item itself."""
    embeddings, own = items.encoded.outputs["embeddings"], items.labels[edits.reference]
    change = encoder.schema.indicator(own, targets_of(edits, items.labels))
    queries = memory_edit(encoder)(embeddings[edits.reference], change)
    ranked = top_k(queries, unit(embeddings.reshape(len(embeddings), -1)), 2)
    return np.where(ranked[:, 0] == edits.reference, ranked[:, -1], ranked[:, 0])


def _judged(
    judge: Judge,
    shown: dict[str, Picture],
    edits: LabelEdits,
    labels: Labels,
    true: Picture | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"queries": len(edits)}
    for name, pictures in shown.items():
        seen = judge.see(pictures)
        found[name] = obedience(seen, edits, labels)
        if true is not None and name != "true":
            pairs = [
                torch.from_numpy(p).permute(0, 3, 1, 2).float() / 255 for p in (pictures, true)
            ]
            found[name] |= {"psnr": psnr(*pairs).mean().item(), "ssim": ssim(*pairs).mean().item()}
        if name == "overlaid":
            found["by_attribute"] = {
                attribute: float((seen == edits.values)[rows, a].mean())
                for a, attribute in enumerate(judge.schema.names)
                if (rows := edits.values[:, a] != UNKNOWN).any()
            }
    return found


def as_text(content: dict[str, Any]) -> str:
    """Format the judge's accuracy, reconstructions, and a table for each number of edits."""
    judge, again = content["judge"], content["reconstruction"]
    lines = [
        f"judge on real pictures: {judge['mean']:.4f} of attributes right",
        f"reconstructions: PSNR {again['psnr']:.2f} dB, style {again['kl']:.1f} nats",
    ]
    for count, row in content["edits"].items():
        heading = f"{count} edited at once, {row['queries']}"
        lines += ["", f"{heading:28}" + "".join(f"{column:>12}" for column in COLUMNS)]
        for name, title in ROWS.items():
            if name in row:
                cells = (row[name].get(column) for column in COLUMNS)
                shown = "".join(f"{'-':>12}" if c is None else f"{c:12.4f}" for c in cells)
                lines.append(f"{title:28}{shown}")
    single = content["edits"].get("1", {}).get("by_attribute", {})
    lines += ["", f"{'wanted, by attribute':28}{'drawn':>12}{'judge, real':>12}"]
    lines += [f"{name:28}{share:12.4f}{judge[name]:12.4f}" for name, share in single.items()]
    return "\n".join(lines)


def tables(content: dict[str, Any]) -> list[Table]:
    """Return the tables of the report; PSNR and SSIM are text, as they are no shares."""
    found: list[Table] = []
    for count, row in content["edits"].items():
        rows: list[list[Cell]] = []
        for name, title in ROWS.items():
            if name in row:
                numbers = (row[name].get(column) for column in ("psnr", "ssim"))
                texts = [None if c is None else f"{c:.3g}" for c in numbers]
                rows.append([title, row[name]["wanted"], row[name]["unchanged"], *texts])
        found.append(
            Table(
                f"drawing_{count}",
                f"Drawn edits, {count} at once, {content['split']} split",
                f"In percent, as a classifier of real pictures sees them, which is right in "
                f"{content['judge']['mean']:.1%} of those. PSNR in dB and SSIM are against "
                f"the true picture of the edit. {row['queries']:,} edits.",
                ["", "wanted value", "others unchanged", "PSNR", "SSIM"],
                rows,
            )
        )
    return found
