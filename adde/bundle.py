"""The exported artefact: two ONNX graphs, golden vectors, and bundle.json with their hashes.

Layout::

    encoder.onnx  images (B, S, S, 3) uint8 -> embeddings (B, A, D), logits (B, V), and presence
                  logits (B, A) if the model has them; float32
    memory.onnx   embeddings (B, A, D), indicator (B, V) -> query (B, A D), L2-normalised; float32
    outfit.onnx   where the bundle has an outfit head: outfit (B, C, V), the mean over an outfit's
                  items of their values' probabilities, each in the row of its category, ->
                  queries (B, C, V): a candidate of category c scores queries[c] times its own
                  probabilities; float32
    style.onnx    where the bundle has a decoder: images (B, S, S, 3) uint8 -> style (B, L) of what
                  no attribute describes; float32
    decoder.onnx  embeddings (B, A, D) of any length, edited or not, style (B, L) -> pictures
                  (B, T, T, 3) uint8
    *.onnx.data   weights that are too large to be embedded in their graph
    golden.npz    a few real pictures and an edit of each, with the outputs of torch, or for a
                  reduced-precision encoder those of onnxruntime at export
    README.md     the model card
    bundle.json   {"format": 3, "schema_hash": ..., "schema": ..., "preprocess": ...,
                   "attributes": A, "width": D, "values": V, "precision": "fp32" | "fp16" | "int8",
                   "parts": the parts in that precision, "memory": "blocks" | "dense", "opset": ...,
                   "calibration": see `adde.scoring.Calibration`, absent from older bundles,
                   "files": {"encoder.onnx": {"bytes": ..., "sha256": ...}, ...},
                   "versions": ..., "parity": ..., "retrieval": ..., "source": ...,
                   "presence": whether the encoder has this output,
                   "outfits": of a head {"category": attribute, "source": ...}, else absent,
                   "drawing": of a decoder {"style": L, "size": T, "source": ...}, else absent,
                   "sha256": of the canonical JSON of all other fields}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adde.errors import UserError, untrusted
from adde.files import read_json, sha256_of_file, write_json
from adde.preprocess import Picture, Preprocess
from adde.schema import Schema, Vector
from adde.scoring import Calibration

BUNDLE_NAME = "bundle.json"
ENCODER, MEMORY, GOLDEN, CARD = "encoder.onnx", "memory.onnx", "golden.npz", "README.md"
FILES = (ENCODER, MEMORY, GOLDEN, CARD)
OUTFIT = "outfit.onnx"
STYLE, DECODER = "style.onnx", "decoder.onnx"
OPTIONAL_FILES = (
    *(f"{ENCODER}.data", f"{MEMORY}.data", f"{OUTFIT}.data", f"{STYLE}.data", f"{DECODER}.data"),
    *(OUTFIT, STYLE, DECODER),
)
"""Present only if a graph's weights are too large to be embedded in it, with an outfit head, or
with a decoder."""
FORMAT = 3
READABLE_FORMATS = (2, 3)
"""Format 2 lacks `preprocess.fit`; its pictures are cropped."""


class Drawing(NamedTuple):
    """Sizes of a bundle's decoder: the style that it takes, and the pictures that it draws."""

    style: int
    """L, numbers of a style."""
    size: int
    """T, side of drawn pictures in pixels."""


class Outputs(NamedTuple):
    """Outputs of an encoder for B pictures."""

    embeddings: Vector
    """(B, A, D) float32."""
    logits: Vector
    """(B, V) float32."""
    presence: Vector | None
    """(B, A) float32 logits; None if the model has no such output."""


@dataclass(frozen=True)
class Golden:
    """Golden vectors: expected outputs for a few pictures and edits."""

    images: Picture
    """(n, S, S, 3) uint8."""
    embeddings: Vector
    """(n, A, D) float32."""
    logits: Vector
    """(n, V) float32."""
    indicator: Vector
    """(n, V) float32 in {-1, 0, 1}."""
    query: Vector
    """(n, A D) float32, L2-normalised."""
    presence: Vector | None = None
    """(n, A) float32 logits, if the model has them."""
    outfit: Vector | None = None
    """(n, C, V) float32, where there is an outfit head."""
    queries: Vector | None = None
    """(n, C, V) float32 of these outfits."""
    style: Vector | None = None
    """(n, L) float32 of `images`, where there is a decoder."""
    drawn: Picture | None = None
    """(n, T, T, 3) uint8, `query` drawn in these styles."""

    @property
    def outputs(self) -> Outputs:
        """The encoder's outputs for `images`."""
        return Outputs(self.embeddings, self.logits, self.presence)

    def write(self, path: Path) -> None:
        """Write golden.npz."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        np.savez_compressed(path, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Read golden.npz. Raises UserError if it is damaged."""
        # Opened here because numpy does not close a damaged file.
        with (
            untrusted(path, "golden vectors"),
            path.open("rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            return cls(**arrays)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder. `details` holds the fields of bundle.json without an attribute here."""

    path: Path
    schema: Schema
    preprocess: Preprocess
    width: int
    """D, the width of one attribute's subspace."""
    details: Mapping[str, Any]
    """precision, parts, memory, opset, versions, parity, retrieval, source, presence, outfits,
    drawing."""
    calibration: Calibration | None = None
    """Settings of the match score; None in older bundles, which rank by distance only."""
    hash: str = field(default="", compare=False)
    """sha256 of bundle.json's content, which includes the hashes of the other files. Empty if the
    bundle was not read from disk."""

    @property
    def encoder(self) -> Path:
        """Path of the encoder's graph."""
        return self.path / ENCODER

    @property
    def outfit(self) -> Path:
        """The file of the outfit head's graph."""
        return self.path / OUTFIT

    @property
    def category(self) -> int | None:
        """Index of the attribute that is an outfit's category; None without an outfit head."""
        head = self.details.get("outfits")
        return None if head is None else self.schema.attribute_index(head["category"])

    @property
    def optional_graphs(self) -> tuple[str, ...]:
        """Names of the graphs of an outfit head and a decoder, where the bundle has them."""
        outfit = () if self.category is None else (OUTFIT,)
        return outfit if self.drawing is None else (*outfit, STYLE, DECODER)

    @property
    def drawing(self) -> Drawing | None:
        """Sizes of the decoder; None without one."""
        decoder = self.details.get("drawing")
        return None if decoder is None else Drawing(decoder["style"], decoder["size"])

    @property
    def memory(self) -> Path:
        """Path of the prototype memory's graph."""
        return self.path / MEMORY

    def golden(self) -> Golden:
        """Read the golden vectors."""
        return Golden.read(self.path / GOLDEN)

    def write(self) -> None:
        """Write bundle.json for the files in `path`."""
        files = {
            name: {
                "bytes": (self.path / name).stat().st_size,
                "sha256": sha256_of_file(self.path / name),
            }
            for name in (*FILES, *OPTIONAL_FILES)
            if name in FILES or (self.path / name).exists()
        }
        content = {
            "format": FORMAT,
            "schema_hash": self.schema.hash,
            "schema": self.schema.to_json(),
            "preprocess": self.preprocess.to_json(),
            "attributes": len(self.schema.sizes),
            "width": self.width,
            "values": self.schema.num_values,
            **self.details,
            "files": files,
        }
        if self.calibration is not None:
            content["calibration"] = self.calibration.to_json()
        write_json(self.path / BUNDLE_NAME, {**content, "sha256": _content_hash(content)})

    @classmethod
    def read(cls, path: Path, verify: bool = True) -> "Bundle":
        """Read a bundle folder.

        Args:
            path: the folder.
            verify: check the hash of every file, not only its size.

        Raises:
            UserError: the folder is no bundle, has another format, lacks a field, has a schema that
                does not match its hash, or a file is missing or changed; names the file.
        """
        manifest = path / BUNDLE_NAME
        if not manifest.exists():
            raise UserError(f"{path}: expected a bundle with {BUNDLE_NAME}, found none")
        content = read_json(manifest)
        with untrusted(manifest, "the fields of a bundle", "export it again"):
            bundle = cls._from_json(path, content)
            named = [name for name in OPTIONAL_FILES if name in content["files"]]
            for name in bundle.optional_graphs:
                if name not in named:
                    raise KeyError(name)
            for name in (*FILES, *named):
                _check_file(path / name, content["files"][name], verify)
        return bundle

    @classmethod
    def _from_json(cls, path: Path, content: Any) -> "Bundle":
        manifest = path / BUNDLE_NAME
        if content["format"] not in READABLE_FORMATS:
            raise UserError(
                f"{manifest}: expected format {FORMAT}, found {content['format']}; export it again"
            )
        schema = Schema.from_json(content["schema"], str(manifest))
        expected = {
            "schema_hash": schema.hash,
            "attributes": len(schema.sizes),
            "values": schema.num_values,
            "sha256": _content_hash(content),
        }
        for key, value in expected.items():
            if content[key] != value:
                raise UserError(
                    f"{manifest}: {key}: expected {value} from what is written there, found "
                    f"{content[key]}; the file was changed, export it again"
                )
        keys = (
            "precision", "parts", "memory", "opset", "versions", "parity", "retrieval", "source"
        )  # fmt: skip
        details = {key: content[key] for key in keys}
        details["presence"] = content.get("presence", False)
        details |= {key: content[key] for key in ("outfits", "drawing") if key in content}
        preprocess = Preprocess.from_json(content["preprocess"])
        width, digest = int(content["width"]), str(content["sha256"])
        calibration = None
        if (found := content.get("calibration")) is not None:
            calibration = Calibration.from_json(found, schema, f"{manifest}: calibration")
            if calibration.presence and not details["presence"]:
                raise UserError(
                    f"{manifest}: calibration: expected no presence divisors, since the "
                    "encoder has no presence output, found some; export it again"
                )
        return cls(path, schema, preprocess, width, details, calibration, digest)


def _content_hash(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "sha256"}
    canonical = json.dumps(rest, separators=(",", ":"), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _check_file(path: Path, written: Mapping[str, Any], verify: bool) -> None:
    size = path.stat().st_size if path.exists() else None
    if size != written["bytes"]:
        found = "no file" if size is None else size
        raise UserError(
            f"{path}: expected {written['bytes']} bytes, found {found}; export the bundle again"
        )
    if verify and (found := sha256_of_file(path)) != written["sha256"]:
        raise UserError(
            f"{path}: damaged: expected sha256 {written['sha256']}, found {found}; "
            "export the bundle again"
        )
