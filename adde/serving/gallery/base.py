"""What answers are drawn from: items with their embeddings, behind one small interface.

A gallery is a folder with gallery.json::

    {"format": 3, "engine": "embedded", "bundle": sha256 of the bundle that embedded it,
     "schema": ..., "schema_hash": ..., "width": D,
     "pictures": folder of the shards, from this one; a template of addresses; or null,
     "source": what was embedded, ...the engine's own}

Symbols: A attributes, D width of a subspace, N items.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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

GALLERY_NAME = "gallery.json"
FORMAT = 3

Fields = Mapping[str, Any]
"""Names to text, finite numbers of 64 bits, truth values or None."""

PictureSpan = tuple[str, int, int]
"""File below the pictures' folder, offset and length of an encoded picture."""


@dataclass(frozen=True, eq=False)
class Item:
    """One item and its embedding."""

    item_id: str
    labels: Labels
    """(A,) int64 as the catalogue has them, UNKNOWN where it does not say."""
    predicted: Labels
    """(A,) int64 as the classifiers see them; never UNKNOWN."""
    vector: Vector
    """(A, D) float32, L2-normalised over both axes."""
    norm: float
    """Length of the embedding before it was normalised; an edit needs it."""
    fields: Fields = field(default_factory=lambda: {})
    """What else is known of it: price, brand, stock; answers can be filtered by it."""
    place: PictureSpan | None = None
    beliefs: Vector | None = None
    """(V + A,) float32, see `adde.scoring`; None where the bundle is not calibrated. Galleries make
    known labels certain when they store it."""


@dataclass(frozen=True)
class Header:
    """What gallery.json says."""

    engine: str
    bundle: str
    schema: Schema
    width: int
    pictures: str | None
    """See `adde.serving.picture_location`."""
    source: str
    """Says what was embedded, so that an interrupted build goes on only with the same."""
    calibration: Mapping[str, Any] | None = None
    """Of the bundle, as JSON. Where there is one, items have beliefs and can be ranked by match."""
    extra: Mapping[str, Any] = field(default_factory=lambda: {})
    """The engine's own."""

    @classmethod
    def of(cls, bundle: Bundle, engine: str, pictures: Path | None, source: str) -> "Header":
        """Header of a new gallery."""
        folder = None if pictures is None else str(pictures.resolve())
        calibration = bundle.calibration and bundle.calibration.to_json()
        return cls(engine, bundle.hash, bundle.schema, bundle.width, folder, source, calibration)

    @property
    def calibrated(self) -> bool:
        """Its items have beliefs, so that it can be searched by match."""
        return self.calibration is not None

    def write(self, folder: Path) -> None:
        """Writes gallery.json."""
        schema = {"schema": self.schema.to_json(), "schema_hash": self.schema.hash}
        pictures = {"pictures": picture_location.relative_to(self.pictures, folder)}
        content = {"format": FORMAT, **vars(self), **schema, **pictures}
        write_json(folder / GALLERY_NAME, content)

    @classmethod
    def read(cls, folder: Path) -> "Header":
        """Reads gallery.json. Raises UserError where there is none, or none of this format."""
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
            # Galleries of before there were beliefs do not say that they have none.
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
        """Refuses a gallery whose vectors another bundle made: they would compare to nothing."""
        if self.bundle != bundle.hash:
            raise UserError(
                f"{folder}: expected a gallery of bundle {bundle.path} ({bundle.hash}), found one "
                f"of bundle {self.bundle}; build it again with this bundle"
            )


class ItemNotFoundError(UserError):
    """No item of the gallery has the id."""


class BusyError(UserError):
    """Another process writes the gallery."""


class UnavailableError(UserError):
    """The service that the gallery lies in does not answer now; later it may."""


class Gallery(Protocol):
    """Items that can be searched and changed at once, from several threads."""

    header: Header

    def __len__(self) -> int:
        """Number of items."""
        ...

    def probe(self) -> int:
        """Number of items, in little time. Raises UnavailableError where nothing answers."""
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
        """Candidates among which are the k best, as many as k where there are that many.

        By distance, the best have the least sum over attributes of weight x squared distance in the
        subspace; by match the highest score, and of those with the same score the least distance.

        Args:
            query: (A, D) float32, L2-normalised over both axes.
            weights: (A,) float32, none negative.
            k: items wanted.
            filters: see `adde.serving.gallery.filters`.
            exclude: an item id that is no answer.
            asked: whether to rank by match, and what answers must show.

        Raises:
            UserError: a filter asks for what no item has, or is none.
            UnavailableError: the service that the gallery lies in does not answer.
        """
        ...

    def get(self, item_id: str) -> Item:
        """An item. Raises ItemNotFoundError with the nearest ids."""
        ...

    def browse(
        self, text: str, filters: Mapping[str, Any], count: int, offset: int = 0, seed: int = 0
    ) -> list[Item]:
        """Items to start from: up to `count` after the first `offset`.

        Args:
            text: words that an item's id, known values or texts must all have; the best first.
                If there are none, items come in an order of the seed's.
            filters: see `adde.serving.gallery.filters`.
            count: items wanted.
            offset: items before them.
            seed: of the order.

        Raises:
            UserError: a filter asks for what no item has, or is none.
            UnavailableError: the service that the gallery lies in does not answer.
        """
        ...

    def facets(self) -> list[Facet]:
        """What fields the items have, which takes seconds where there are millions.

        Raises:
            UnavailableError: the service that the gallery lies in does not answer.
        """
        ...

    def upsert(self, items: Sequence[Item]) -> None:
        """Adds items, or puts them in the place of those with their ids; all or none.

        Raises:
            UnavailableError: it is not known whether they were stored. Do it again: what is
                stored already is put in its own place.
        """
        ...

    def delete(self, item_ids: Sequence[str]) -> int:
        """Takes items away; the number of those that were there."""
        ...

    def finish(self) -> None:
        """Makes what search is faster with, when all items are in."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


def facts(schema: Schema, item: Item) -> dict[str, Any]:
    """What an item can be filtered by: its known labels by name, and its fields.

    Raises:
        UserError: a field has the name of an attribute, or is none that can be stored.
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
    """Beliefs (N, V + A) float32 to store, known labels certain; None where there are none.

    Raises:
        UserError: the gallery is of a calibrated bundle, and an item has no beliefs.
    """
    if not header.calibrated:
        return None
    rows: list[Vector] = []
    for item in items:
        if item.beliefs is None:
            raise UserError(
                f"item {item.item_id!r}: expected its beliefs, as the gallery's bundle is "
                "calibrated, found none; adde.serving.gallery.embedding.embed gives them"
            )
        rows.append(item.beliefs)
    labels = np.stack([item.labels for item in items])
    return with_known(np.stack(rows).astype(np.float32), labels, header.schema)


def require_unique(items: Sequence[Item]) -> None:
    """Refuses items of which two have one id."""
    counts = Counter(item.item_id for item in items)
    if len(counts) != len(items):
        twice = next(item_id for item_id, count in counts.items() if count > 1)
        raise UserError(f"expected every item id once, found {twice!r} twice")


def read_picture(header: Header, item: Item) -> bytes | None:
    """An item's encoded picture; None where the gallery does not know one, or knows an address.

    Raises:
        UserError: the shards are not where they were, or were changed.
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
            f"{path}: expected the shard that holds items' pictures, found: {error.strerror}; say "
            "where the shards lie, server.py --pictures FOLDER, or build the gallery again"
        ) from None
    if len(content) != size:
        raise UserError(f"{path}: expected {size} bytes at {offset}, found {len(content)}")
    return content
