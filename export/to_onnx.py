"""Export a run's checkpoint as a bundle that serves without torch.

python export/to_onnx.py --run runs/quickstart --out bundles/quickstart
python export/to_onnx.py --run runs/shop --out bundles/shop --checkpoint last --shards data/shop
python export/to_onnx.py --run runs/shop --out bundles/shop-int8 --precision int8
python export/to_onnx.py --run runs/shop --out bundles/shop --outfits runs/outfits
python export/to_onnx.py --run runs/shop --out bundles/shop --decoder runs/decoder

The bundle is written only if onnxruntime gives the same answers as torch on the test split (with
--split val: the validation split). An existing bundle is replaced unless it has the same weights,
shards and versions; a folder with other files is rejected.
"""

from pathlib import Path
from typing import Literal

import torch
import tyro

from adde.errors import run_program
from adde.exporting.drawing import load_decoder
from adde.exporting.export import export_bundle, is_up_to_date
from adde.exporting.outfits import load_head
from adde.exporting.precision import Precision
from adde.files import read_json, sha256_of_file
from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.opening import load_adde
from adde.training.checkpoints.checkpoint import STATE_NAME
from adde.training.evaluation import Evaluator
from adde.training.resilience.requirements import require_split
from adde.training.run_folder import open_shards

UNTRAINED = "the mean prototypes of stage 2, untrained: the run has adde.schedule.epochs = 0"
"""Contents of memory.onnx for a run without stage 3."""

BATCH = 64
"""Pictures encoded at a time to calibrate a checkpoint."""


def export(
    run: Path,
    out: Path,
    checkpoint: Literal["best", "last"] = "best",
    shards: str | None = None,
    split: Literal["test", "val"] = "test",
    precision: Precision = "fp32",
    allow_drop: float | None = None,
    outfits: Path | None = None,
    decoder: Path | None = None,
) -> None:
    """Write encoder, memory, golden vectors and bundle.json.

    Args:
        run: folder of the run.
        out: folder of the bundle.
        checkpoint: best on the validation split, or last.
        shards: folder or address of shards for the parity gate; default: those of the training.
        split: of the parity gate: test, or val if the shards have no test split.
        precision: of the encoder's weights and arithmetic; int8 is calibrated on the training
            split.
        allow_drop: points of hit@30, NDCG@30 and attribute accuracy that reduced precision may
            cost; default: 0.1 for fp16, 1.0 for int8.
        outfits: folder of an outfit head's run, trained on the same checkpoint; the bundle then
            completes outfits.
        decoder: folder of a decoder's run, trained on the same checkpoint; the bundle then draws
            edits.
    """
    model, config, found = load_adde(run, checkpoint)
    index = open_shards(config, shards)
    require_split(index, split)
    metrics = run / "metrics.json"
    source = {
        "run": run.resolve().name,
        "checkpoint": found.path.name,
        "step": found.position.step,
        "catalogue": index.name,
        "weights": sha256_of_file(found.path / STATE_NAME),
        "pictures": index.fingerprint(split),
    }
    if not config.adde.schedule.epochs:
        source["memory"] = UNTRAINED
        print(f"{out}: the memory that edits is {UNTRAINED}")
    retrieval = read_json(metrics) if metrics.exists() else None
    if retrieval is not None and retrieval.get("checkpoint") != found.path.name:
        print(f"{metrics}: metrics of {retrieval.get('checkpoint')}, left out of the bundle")
        retrieval = None
    head = None if outfits is None else load_head(outfits, source["weights"])
    drawer = None if decoder is None else load_decoder(decoder, source["weights"])
    evaluator = Evaluator(index, BATCH, config.data.workers, torch.device("cpu"))
    calibration, _ = calibration_of(found, model, evaluator)
    request = (retrieval, source, calibration, precision, allow_drop, split, head, drawer)
    if is_up_to_date(out, *request):
        print(f"{out}: exported from the same before, nothing to do")
        return
    bundle = export_bundle(model, index, out, *request)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{found.path.name} of {run}: {bundle.path} ({size:.1f} MB)")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(export))
