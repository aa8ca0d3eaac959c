"""Export of a Glow: a graph each way, and the directions of attributes.

A folder holds encode.onnx (pictures (B, S, S, 3) uint8 -> latents (B, D)), decode.onnx (latents
(B, D) -> pictures (B, S, S, 3) uint8), directions.npy ((V, D), the direction of each value) and
flow.json. An edit adds the new value's direction to the latents and takes the old one's away.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from adde.errors import UserError
from adde.exporting.export import package_versions
from adde.exporting.graphs import OPSET, export_graph
from adde.files import atomic_path, require_writable, unexpected_entries, write_json
from adde.methods.glow.layers import Convolution, FixedConvolution
from adde.methods.glow.model import Glow
from adde.preprocess import Picture
from adde.schema import Schema

ENCODE, DECODE, DIRECTIONS, FLOW = "encode.onnx", "decode.onnx", "directions.npy", "flow.json"

MAX_ERROR = 1e-3
"""Largest absolute difference of a latent from torch's; its deviation under the prior is 1."""


class EncodeGraph(nn.Module):
    """Pictures (B, S, S, 3) uint8 -> normalised latents (B, D)."""

    def __init__(self, model: Glow) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Encode."""
        return self.model.encode(images)


class DecodeGraph(nn.Module):
    """Normalised latents (B, D) -> pictures (B, S, S, 3) uint8."""

    def __init__(self, model: Glow) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        """Decode, and stretch the colours of few bits over the whole range."""
        pictures = self.model.decode(latents).permute(0, 2, 3, 1)
        return (pictures * 255).round().to(torch.uint8)


def export_flow(
    model: Glow,
    directions: Tensor,
    schema: Schema,
    pictures: Picture,
    out: Path,
    source: Mapping[str, Any],
) -> dict[str, float]:
    """Write a flow's graphs to the folder `out`, replacing those of another flow.

    Args:
        model: on the CPU, in eval mode.
        directions: (V, D).
        schema: of the directions.
        pictures: (n, S, S, 3) uint8, with which onnxruntime is compared with torch.
        out: a folder that is new, empty or a flow's.
        source: describes the run and its checkpoint.

    Returns:
        Differences from torch: the largest of a latent, and the share of colours that differ
        after encoding and decoding.

    Raises:
        UserError: `out` has other files, or onnxruntime does not give what torch gives; `out` is
            then unchanged.
    """
    known = {ENCODE, DECODE, f"{ENCODE}.data", f"{DECODE}.data", DIRECTIONS, FLOW}
    if others := unexpected_entries(out, lambda name: name in known):
        raise UserError(
            f"{out}: expected a new folder or one with nothing but a flow, which is replaced, "
            f"found {others[0]}; name another such as {out / 'flow'}"
        )
    require_writable(out)
    fixed = with_inverses(model)
    with atomic_path(out, FLOW) as folder:
        folder.mkdir()
        side = model.preprocess.size
        images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        export_graph(EncodeGraph(fixed), {"images": images}, ("latents",), folder / ENCODE)
        latents = {"latents": torch.zeros(2, model.dimensions)}
        export_graph(DecodeGraph(fixed), latents, ("pictures",), folder / DECODE)
        np.save(folder / DIRECTIONS, directions.numpy())
        differences = compare(model, folder, pictures)
        details = {
            "preprocess": model.preprocess.to_json(),
            "schema": schema.to_json(),
            "bits": model.bits,
            "levels": [list(shape) for shape in model.flow.shapes],
            "opset": OPSET,
            "versions": package_versions(),
            "parity": differences,
            "source": dict(source),
        }
        write_json(folder / FLOW, details)
    return differences


def with_inverses(model: Glow) -> Glow:
    """Copy a model with fixed 1x1 convolutions, whose inverses are constants."""
    fixed = copy.deepcopy(model)
    for name, part in model.named_modules():
        if isinstance(part, Convolution):
            parent, _, child = name.rpartition(".")
            setattr(fixed.get_submodule(parent), child, FixedConvolution(part))
    return fixed.eval()


@torch.no_grad()
def compare(model: Glow, folder: Path, pictures: Picture) -> dict[str, float]:
    """Compare the graphs with torch on pictures (n, S, S, 3) uint8.

    Raises:
        UserError: they differ.
    """
    sessions = [
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        for name in (ENCODE, DECODE)
    ]
    (latents,) = sessions[0].run(None, {"images": pictures})
    (decoded,) = sessions[1].run(None, {"latents": latents})
    error = float(np.abs(latents - model.encode(torch.from_numpy(pictures)).numpy()).max())
    colours = (model.scaled(torch.from_numpy(pictures), 0.0) + 0.5) * 2**model.bits
    whole = (colours / (2**model.bits - 1) * 255).round().permute(0, 2, 3, 1).numpy()
    wrong = float((decoded != whole).mean())
    if not error <= MAX_ERROR or wrong:
        raise UserError(
            "onnxruntime does not give what torch gives, nothing is written: expected latents that "
            f"differ by at most {MAX_ERROR:g} and pictures decoded to the last bit, found "
            f"{error:.3g} and {wrong:.3%} of the colours wrong; try another version of torch, onnx "
            "or onnxruntime"
        )
    return {"latents": error, "colours": wrong}
