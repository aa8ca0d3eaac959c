"""Export of the two ONNX graphs, traced from the model's `encode` and `edit`."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from adde.bundle import DECODER, ENCODER, MEMORY, OUTFIT, STYLE, Outputs
from adde.errors import UserError
from adde.methods.adde.model import ADDE
from adde.methods.decoder.model import PictureDecoder
from adde.methods.outfits.model import Bilinear
from adde.methods.pictures import as_bytes
from adde.preprocess import Picture
from adde.schema import Vector

OPSET = 20
BLOCK_SHARE = 1e-5
"""If less than this share of the prototype memory's norm is outside its blocks, only the blocks are
exported; answers then change by less than the parity gate detects."""

EMBEDDED_BYTES = 1_500_000_000
"""Larger weights are stored beside the graph, because protobuf is limited to 2 GiB."""


class EncoderGraph(nn.Module):
    """Pictures (B, S, S, 3) uint8 -> embeddings (B, A, D), logits (B, V), presence (B, A)."""

    def __init__(self, model: ADDE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Apply preprocessing, backbone, heads, classifiers and presence head."""
        return tuple(output for output in self.model.encode(images) if output is not None)


class MemoryGraph(nn.Module):
    """Embeddings (B, A, D), indicator (B, V) -> r' / |r'| (B, A D)."""

    def __init__(self, model: ADDE) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor, indicator: Tensor) -> Tensor:
        """Compute the edit, flattened and of length 1."""
        return nn.functional.normalize(self.model.edit(embeddings, indicator).flatten(1), dim=1)


class BlockMemoryGraph(nn.Module):
    """A prototype memory that multiplies only the columns' own blocks: 1 / A of the work."""

    def __init__(self, model: ADDE) -> None:
        super().__init__()
        schema, width = model.schema, model.settings.width
        longest = max(schema.sizes)
        blocks = torch.zeros(len(schema.sizes), longest, width)
        places = torch.full((len(schema.sizes), longest), schema.num_values)
        for column, attribute in enumerate(schema.attribute_of_column.tolist()):
            place = column - schema.offsets[attribute]
            rows = slice(attribute * width, (attribute + 1) * width)
            blocks[attribute, place] = model.memory.weight[rows, column].detach()
            places[attribute, place] = column
        self.register_buffer("blocks", blocks)
        self.register_buffer("places", places.flatten())

    blocks: Tensor
    places: Tensor

    def forward(self, embeddings: Tensor, indicator: Tensor) -> Tensor:
        """Compute the edit, flattened and of length 1."""
        # Attributes differ in their number of values; missing ones read a column of zeros.
        padded = nn.functional.pad(indicator, (0, 1)).index_select(1, self.places)
        own = padded.unflatten(1, self.blocks.shape[:2]).transpose(0, 1)
        edited = embeddings + torch.bmm(own, self.blocks).transpose(0, 1)
        return nn.functional.normalize(edited.flatten(1), dim=1)


class OutfitGraph(nn.Module):
    """Mean outfits (B, C, V) -> queries (B, C, V) of every category."""

    def __init__(self, head: Bilinear) -> None:
        super().__init__()
        self.register_buffer("matrix", head.matrix.detach().clone())

    matrix: Tensor

    def forward(self, outfit: Tensor) -> Tensor:
        """One product with the tables of all pairs of categories."""
        return (outfit.flatten(1) @ self.matrix).unflatten(1, outfit.shape[1:])


class StyleGraph(nn.Module):
    """Pictures (B, S, S, 3) uint8 -> style (B, L)."""

    def __init__(self, decoder: PictureDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the style's posterior."""
        return self.decoder.style(images)[0]


class DecoderGraph(nn.Module):
    """Embeddings (B, A, D), style (B, L) -> pictures (B, T, T, 3) uint8."""

    def __init__(self, decoder: PictureDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, embeddings: Tensor, style: Tensor) -> Tensor:
        """Draw, and round to whole levels."""
        return as_bytes(self.decoder.draw(embeddings, style).sigmoid())


def off_block_share(model: ADDE) -> float:
    """Compute ||N o M|| / ||M||, the share of the memory's norm outside its columns' own blocks."""
    weight = model.memory.weight.detach().double()
    norm = weight.norm().item()
    return (weight * model.memory.off_block).norm().item() / norm if norm else 0.0


class TorchSession:
    """The torch model on the CPU with the interface of `adde.serving.onnx.session.Session`."""

    def __init__(self, model: ADDE) -> None:
        self._encoder, self._memory = EncoderGraph(model).eval(), MemoryGraph(model).eval()

    @torch.no_grad()
    def encode(self, images: Picture) -> Outputs:
        """Encode pictures (B, S, S, 3) uint8."""
        embeddings, logits, *presence = (
            output.numpy() for output in self._encoder(torch.from_numpy(images))
        )
        return Outputs(embeddings, logits, presence[0] if presence else None)

    @torch.no_grad()
    def edit(self, embeddings: Vector, indicator: Vector) -> Vector:
        """Edit embeddings (B, A, D) by indicator (B, V): L2-normalised queries (B, A D)."""
        return self._memory(torch.from_numpy(embeddings), torch.from_numpy(indicator)).numpy()


def write_graphs(model: ADDE, folder: Path) -> Literal["blocks", "dense"]:
    """Write encoder.onnx and memory.onnx with a dynamic batch; return the form of the memory.

    Weights are embedded in the graph, or stored in `<graph>.data` above EMBEDDED_BYTES.

    Raises:
        UserError: torch cannot export the backbone.
    """
    side, attributes = model.preprocess.size, len(model.schema.sizes)
    images = torch.from_numpy(np.zeros((2, side, side, 3), np.uint8))
    embeddings = torch.zeros(2, attributes, model.settings.width)
    indicator = torch.zeros(2, model.schema.num_values)
    outputs = ("embeddings", "logits") + (("presence",) if model.settings.presence else ())
    try:
        export_graph(EncoderGraph(model), {"images": images}, outputs, folder / ENCODER)
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"model.backbone: torch cannot export {model.settings.backbone!r} to ONNX opset "
            f"{OPSET}: {error}"
        ) from error
    inputs = {"embeddings": embeddings, "indicator": indicator}
    blocks = off_block_share(model) <= BLOCK_SHARE
    memory = BlockMemoryGraph(model) if blocks else MemoryGraph(model)
    export_graph(memory, inputs, ("query",), folder / MEMORY)
    return "blocks" if blocks else "dense"


def write_outfit_graph(head: Bilinear, folder: Path) -> None:
    """Write outfit.onnx into `folder`, batch dynamic."""
    count, _, values, _ = head.table.shape
    inputs = {"outfit": torch.zeros(2, count, values)}
    export_graph(OutfitGraph(head), inputs, ("queries",), folder / OUTFIT)


def write_drawing_graphs(decoder: PictureDecoder, shape: tuple[int, int], folder: Path) -> None:
    """Write style.onnx and decoder.onnx into `folder`; `shape` is (A, D) of embeddings."""
    side = decoder.preprocess.size
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    export_graph(StyleGraph(decoder), {"images": images}, ("style",), folder / STYLE)
    inputs = {"embeddings": torch.zeros(2, *shape), "style": torch.zeros(2, decoder.numbers)}
    export_graph(DecoderGraph(decoder), inputs, ("pictures",), folder / DECODER)


def export_graph(
    module: nn.Module, inputs: Mapping[str, Any], outputs: tuple[str, ...], path: Path
) -> None:
    """Write a module's graph with a dynamic batch; weights lie beside it above EMBEDDED_BYTES."""
    batch = Dim("batch", min=1, max=65_536)
    # The exporter prints its steps and logs optional packages it lacks.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        torch.no_grad(),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        # The exporter warns that two inputs share the batch axis, which is intended.
        warnings.filterwarnings("ignore", "# The axis name: batch")
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in inputs},
            verbose=False,
        )
    assert program is not None
    _cast_first(program)
    _strip_notes(program)
    weights = [value.const_value for value in program.model.graph.initializers.values()]
    weight_bytes = sum(weight.nbytes for weight in weights if weight is not None)
    program.save(path, external_data=weight_bytes > EMBEDDED_BYTES)


def _cast_first(program: torch.onnx.ONNXProgram) -> None:
    """Read the batch size after the pictures' cast.

    TensorRT supports uint8 only as the input of a cast, not even of Shape. Excluding the Shape node
    would give TensorRT's subgraph an input of unknown size, which it rejects.
    """
    graph = program.model.graph
    for value in graph.inputs:
        uses = list(value.uses())
        cast = next((node for node, _ in uses if node.op_type == "Cast"), None)
        for node, place in uses:
            if cast is not None and node.op_type == "Shape":
                node.replace_input_with(place, cast.outputs[0])
    graph.sort()


def _strip_notes(program: torch.onnx.ONNXProgram) -> None:
    """Remove the exporter's metadata of every node: source lines and paths of this machine."""
    graph = program.model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    for entry in (program.model, graph, *nodes, *values):
        entry.metadata_props.clear()
        entry.doc_string = None
