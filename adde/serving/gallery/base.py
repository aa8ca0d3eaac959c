"""The gallery: items with their embeddings, behind one small interface.

A gallery is a folder with gallery.json::

    {"format": 3, "engine": "embedded", "bundle": sha256 of the bundle that embedded it,
     "schema": ..., "schema_hash": ..., "width": D,
     "pictures": path of the shards' folder relative to this one; a URL template; or null,
     "source": identifies what was embedded, ...engine-specific fields}

Symbols: A attributes, D width of a subspace, N items.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import read_json, write_json
from adde.schema import Labels, Schema, Vector
from adde.scoring import with_known
from adde.serving import picture_location
from adde.serving.gallery.facets import Facet
from adde.serving.gallery.filters import storable
from adde.serving.gallery.scorers import BY_DISTANCE, RankOptions

Split = Literal["all", "train", "val", "test"]
"""Items of a folder of shards: those of one split, or all."""

GALLERY_NAME = "gallery.json"
FORMAT = 3

Fields = Mapping[str, Any]
"""Field names to text, finite 64-bit numbers, booleans or None."""

PictureSpan = tuple[str, int, int]
"""An encoded picture: file below the pictures' folder, byte offset, length."""


@dataclass(frozen=True, eq=False)
class Item:
    """One item and its embedding."""

    item_id: str
    labels: Labels
    """(A,) int64 from the catalogue, UNKNOWN where it has no label."""
    predicted: Labels
    """(A,) int64 predicted by the classifiers; never UNKNOWN."""
    vector: Vector
    """(A, D) float32, L2-normalised over both axes."""
    norm: float
    """Length of the embedding before normalising; edits need it."""
    fields: Fields = field(default_factory=lambda: {})
    """Further data such as price, brand and stock, for filters."""
    place: PictureSpan | None = None
    beliefs: Vector | None = None
    """(V + A,) float32, see `adde.scoring`; None for an uncalibrated bundle. Galleries make known
    labels certain when they store it.
    """


@dataclass(frozen=True)
class Header:
    """The content of gallery.json."""

    engine: str
    bundle: str
    schema: Schema
    width: int
    pictures: str | None
    """See `adde.serving.picture_location`."""
    source: str
    """Identifies what was embedded; an interrupted build resumes only with the same source."""
    calibration: Mapping[str, Any] | None = None
    """The bundle's calibration as JSON. If present, items have beliefs and can be ranked by match.
    """
    extra: Mapping[str, Any] = field(default_factory=lambda: {})
    """Engine-specific fields."""

    @classmethod
    def of(cls, bundle: Bundle, engine: str, pictures: Path | None, source: str) -> "Header":
        """Make the header of a new gallery."""
        folder = None if pictures is None else str(pictures.resolve())
        calibration = bundle.calibration and bundle.calibration.to_json()
        return cls(engine, bundle.hash, bundle.schema, bundle.width, folder, source, calibration)

    @property
    def calibrated(self) -> bool:
        """Whether items have beliefs and can be ranked by match."""
        return self.calibration is not None

    def write(self, folder: Path) -> None:
        """Write gallery.json."""
        schema = {"schema": self.schema.to_json(), "schema_hash": self.schema.hash}
        pictures = {"pictures": picture_location.relative_to(self.pictures, folder)}
        content = {"format": FORMAT, **vars(self), **schema, **pictures}
        write_json(folder / GALLERY_NAME, content)

    @classmethod
    def read(cls, folder: Path) -> "Header":
        """Read gallery.json. Raises UserError if it is missing, damaged or of another format."""
        path = folder / GALLERY_NAME
        if not path.exists():
            raise UserError(
                f"{folder}: expected a gallery with {GALLERY_NAME}, found none; make one with "
                "python serve_onnx/build_gallery.py"
            )
        content = read_json(path)
        try:
            if content["format"] != FORMAT:
                found = content["format"]
                raise UserError(f"{path}: expected format {FORMAT}, found {found}; build it again")
            schema = Schema.from_json(content["schema"], str(path))
            # Galleries written before beliefs existed lack the key.
            content.setdefault("calibration", None)
            content["pictures"] = picture_location.resolve(content["pictures"], folder)
            rest = {name: content[name] for name in cls.__annotations__ if name != "schema"}
            return cls(schema=schema, **rest)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: expected the fields of a gallery, found: {type(error).__name__} "
                f"{error}; build it again"
            ) from None

    def require_bundle(self, bundle: Bundle, folder: Path) -> None:
        """Reject a gallery embedded by another bundle: its vectors are not comparable. Raises
        UserError.
        """
        if self.bundle != bundle.hash:
            raise UserError(
                f"{folder}: expected a gallery of bundle {bundle.path} ({bundle.hash}), found one "
                f"of bundle {self.bundle}; build it again with this bundle"
            )


class ItemNotFoundError(UserError):
    """The gallery has no item with this id."""


class BusyError(UserError):
    """Another process holds the gallery's writer lock."""


class UnavailableError(UserError):
    """The gallery's service does not answer at present; it may later."""


class Gallery(Protocol):
    """Items that can be searched and changed concurrently from several threads."""

    header: Header

    def __len__(self) -> int:
        """Number of items."""
        ...

    def probe(self) -> int:
        """Number of items, quickly. Raises UnavailableError if the service does not answer."""
        ...

    def nearest(
        self,
        query: Vector,
        weights: Vector,
        k: int,
        filters: Mapping[str, Any],
        exclude: str | None = None,
        asked: RankOptions = BY_DISTANCE,
    ) -> list[Item]:
        """Return candidates that include the k best, at least k if that many items pass.

        By distance, the best have the smallest sum over attributes of weight x squared subspace
        distance. By match, the best have the highest score; ties go to the smaller distance.

        Args:
            query: (A, D) float32, L2-normalised over both axes.
            weights: (A,) float32, non-negative.
            k: items wanted.
            filters: see `adde.serving.gallery.filters`.
            exclude: id of an item to leave out.
            asked: whether to rank by match, and labels that answers must show.

        Raises:
            UserError: a filter is malformed, or names what no item has.
            UnavailableError: the gallery's service does not answer.
        """
        ...

    def get(self, item_id: str) -> Item:
        """Return an item. Raises ItemNotFoundError with the most similar ids."""
        ...

    def browse(
        self, text: str, filters: Mapping[str, Any], count: int, offset: int = 0, seed: int = 0
    ) -> list[Item]:
        """Return up to `count` items to start from, after the first `offset`.

        Args:
            text: words that an item's id, known values or texts must all contain; best match first.
                Without words, items come in an order drawn from `seed`.
            filters: see `adde.serving.gallery.filters`.
            count: items wanted.
            offset: items to skip.
            seed: determines the order without words.

        Raises:
            UserError: a filter is malformed, or names what no item has.
            UnavailableError: the gallery's service does not answer.
        """
        ...

    def facets(self) -> list[Facet]:
        """Summarise the items' fields; takes seconds for millions of items.

        Raises:
            UnavailableError: the gallery's service does not answer.
        """
        ...

    def upsert(self, items: Sequence[Item]) -> None:
        """Add items, or replace those with the same ids; all or nothing.

        Raises:
            UnavailableError: it is unknown whether the items were stored. Retry: storing them again
                is harmless.
        """
        ...

    def delete(self, item_ids: Sequence[str]) -> int:
        """Delete items and return how many existed."""
        ...

    def finish(self) -> None:
        """Build search structures after all items have been added."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...


def facts(schema: Schema, item: Item) -> dict[str, Any]:
    """Return what an item can be filtered by: known labels by attribute name, and fields.

    The label of an attribute of several values is a list.

    Raises:
        UserError: a field has the name of an attribute, or a value that cannot be stored.
    """
    known = {n: v for n, v in schema.decode(item.labels).items() if v is not None}
    for name, value in item.fields.items():
        if name in schema.names:
            raise UserError(
                f"item {item.item_id!r}: expected fields with names of their own, found "
                f"{name!r}, which is an attribute"
            )
        if value is not None and not storable(value):
            found = repr(value) if isinstance(value, str | int | float) else type(value).__name__
            raise UserError(
                f"item {item.item_id!r}: field {name!r}: expected text, a finite number of 64 "
                f"bits, true, false or null, found {found}; leave out a field that is not known"
            )
    return {**known, **item.fields}


def beliefs_to_store(header: Header, items: Sequence[Item]) -> Vector | None:
    """Stack beliefs (N, V + A) float32 for storage, with known labels certain; None if
    uncalibrated.

    Raises:
        UserError: the gallery's bundle is calibrated and an item has no beliefs.
    """
    if not header.calibrated:
        return None
    rows: list[Vector] = []
    for item in items:
        if item.beliefs is None:
            raise UserError(
                f"item {item.item_id!r}: expected its beliefs, as the gallery's bundle is "
                "calibrated, found none; adde.serving.gallery.embedding.embed computes them"
            )
        rows.append(item.beliefs)
    labels = np.stack([item.labels for item in items])
    return with_known(np.stack(rows).astype(np.float32), labels, header.schema)


def require_unique(items: Sequence[Item]) -> None:
    """Raise UserError if two items have the same id."""
    counts = Counter(item.item_id for item in items)
    if len(counts) != len(items):
        twice = next(item_id for item_id, count in counts.items() if count > 1)
        raise UserError(f"expected every item id once, found {twice!r} twice")


def read_picture(header: Header, item: Item) -> bytes | None:
    """Read an item's encoded picture; None if the gallery has none, or only a URL for it.

    Raises:
        UserError: the shards were moved or changed.
    """
    if (
        header.pictures is None
        or item.place is None
        or picture_location.url_origin(header.pictures)
    ):
        return None
    name, offset, size = item.place
    path = Path(header.pictures) / name
    try:
        with path.open("rb") as file:
            content = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise UserError(
            f"{path}: expected the shard that holds items' pictures, found: {error.strerror}; give "
            "the shards' folder with server.py --pictures FOLDER, or build the gallery again"
        ) from None
    if len(content) != size:
        raise UserError(f"{path}: expected {size} bytes at {offset}, found {len(content)}")
    return content
