"""The decoder of a bundle: opened, and compared with what onnxruntime makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adde.bundle import Golden
from adde.errors import UserError
from adde.exporting import parity
from adde.exporting.additions import open_addition
from adde.exporting.graphs import DecoderGraph, StyleGraph
from adde.methods.decoder.model import PictureDecoder
from adde.preprocess import Picture
from adde.schema import Vector
from adde.serving.onnx.session import Session


@dataclass(frozen=True)
class Drawer:
    """A decoder, and what names it."""

    decoder: PictureDecoder
    source: Mapping[str, Any]

    def details(self) -> dict[str, Any]:
        """Return its entry in bundle.json."""
        size, style = self.decoder.side, self.decoder.numbers
        return {"style": style, "size": size, "source": dict(self.source)}


def load_decoder(run: Path, encoder: str) -> Drawer:
    """Open the best checkpoint of a decoder's run.

    Args:
        run: folder of the run.
        encoder: sha256 of the checkpoint that is exported.

    Raises:
        UserError: the run is of another method or form, or was trained on another checkpoint.
    """
    decoder, config, source = open_addition(run, "decoder", "decoder", encoder)
    if not isinstance(decoder, PictureDecoder):
        raise UserError(
            f"{run}: expected a decoder of the form 'vae', which draws in one pass, found "
            f"{config.form!r}; train one with form = 'vae'"
        )
    return Drawer(decoder, source)


def with_drawing(golden: Golden, decoder: PictureDecoder, session: Session) -> Golden:
    """Return golden vectors with the styles of their pictures, and their edits drawn.

    Raises:
        UserError: onnxruntime does not draw as torch does.
    """
    decoder.eval()
    edited = golden.query.reshape(golden.embeddings.shape)
    with torch.no_grad():
        style: Vector = StyleGraph(decoder)(torch.from_numpy(golden.images)).numpy()
        drawn: Picture = DecoderGraph(decoder)(*map(torch.from_numpy, (edited, style))).numpy()
    for size in parity.BATCH_SIZES:
        rows = np.arange(size) % len(style)
        error = parity.relative_error(style[rows], session.style(golden.images[rows]))
        problem = parity.pictures_differ(drawn[rows], session.draw(edited[rows], style[rows]))
        if not error <= parity.MAX_ERROR:
            problem = f"styles by {error:.3g} of their scale, expected at most {parity.MAX_ERROR:g}"
        if problem:
            raise UserError(
                f"onnxruntime does not draw as torch does, no bundle is written: at batch {size} "
                f"found different {problem}; try another version of torch, onnx or onnxruntime"
            )
    return replace(golden, style=style, drawn=drawn)
