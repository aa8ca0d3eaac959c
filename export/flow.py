"""Export a Glow's checkpoint as ONNX graphs of both directions, with the directions of attributes.

python export/flow.py --run runs/glow --out flows/rooms

The graphs are written only if onnxruntime encodes as torch does, and decodes pictures to the last
bit.
"""

from pathlib import Path

import torch
import tyro

from adde.errors import UserError, run_program
from adde.exporting.flow import export_flow
from adde.files import sha256_of_file
from adde.methods.glow.directions import read_directions
from adde.methods.glow.model import Glow
from adde.methods.pictures import spread_items
from adde.training.checkpoints.checkpoint import STATE_NAME
from adde.training.opening import load_model
from adde.training.run_folder import open_shards

PICTURES = 16
"""Pictures of the validation split that are compared."""


def export(run: Path, out: Path, shards: str | None = None) -> None:
    """Write encode.onnx, decode.onnx, directions.npy and flow.json.

    Args:
        run: folder of the run; its best checkpoint is exported.
        out: folder of the flow.
        shards: folder or address of shards to compare with; default: those of the training.
    """
    model, config, found = load_model(run)
    if not isinstance(model, Glow):
        raise UserError(
            f"{run}: expected a run of the method 'glow', found one of {config.method!r}"
        )
    index = open_shards(config, shards)
    pictures, _ = spread_items(model.preprocess, index, "val", PICTURES)
    source = {
        "run": run.resolve().name,
        "checkpoint": found.path.name,
        "weights": sha256_of_file(found.path / STATE_NAME),
    }
    directions = read_directions(found.path)
    torch.set_grad_enabled(False)
    errors = export_flow(model, directions, index.schema, pictures.numpy(), out, source)
    print(f"{found.path.name} of {run}: {out}; latents differ by {errors['latents']:.1e}")


if __name__ == "__main__":
    run_program(lambda: tyro.cli(export))
