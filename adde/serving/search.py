"""Picture and edits in, ranked items out: this item, but with these values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from adde.bundle import Bundle
from adde.errors import UserError, did_you_mean
from adde.metrics import predicted_labels
from adde.preprocess import Picture
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.serving.build import open_or_build
from adde.serving.gallery import Fields, Gallery, Item
from adde.serving.providers import Device
from adde.serving.session import Session

MAX_WEIGHT = 1000.0
MAX_K = 1000

Source = bytes | str | Path | Picture
"""A picture file's content, its path, or (S, S, 3) uint8 as `bundle.preprocess.load` gives it."""


@dataclass(frozen=True)
class Match:
    """One attribute of an answer, held against what was asked for."""

    value: str
    """The answer's value, as the catalogue has it."""
    predicted: bool
    """The catalogue does not say; `value` is what the classifier sees."""
    seen: str
    """What the classifier sees in the answer, whatever the catalogue says."""
    wanted: str
    """The query's predicted value, or the edit's."""
    share: float
    """Of the distance, 0 to 1."""

    @property
    def good(self) -> bool:
        """The answer has the wanted value."""
        return self.value == self.wanted


@dataclass(frozen=True)
class Answer:
    """One item of the gallery as an answer."""

    item_id: str
    distance: float
    """Sum over attributes of weight x squared distance in the subspace; 0 to 4 without weights."""
    labels: Mapping[str, str | None]
    """As the catalogue has them; None where it does not say."""
    fields: Fields
    matches: Mapping[str, Match]
    item: Item = field(repr=False, compare=False)
    """As the gallery has it; `read_picture` leads to its picture."""

    @property
    def score(self) -> float:
        """1 - distance / 2: where no weights are given, the cosine of query and item."""
        return 1 - self.distance / 2

    @property
    def good(self) -> bool:
        """Every attribute that the catalogue knows of the answer has the wanted value."""
        return all(match.good or match.predicted for match in self.matches.values())


@dataclass(frozen=True)
class Seen:
    """What the classifier sees in a picture: the likeliest value, and its probability."""

    value: str
    confidence: float


@dataclass(frozen=True)
class Result(Sequence[Answer]):
    """Answers, best first, and what was looked for."""

    answers: tuple[Answer, ...]
    seen: Mapping[str, Seen]
    """Of each attribute of the query before the edits. Of an item, confidence is 1."""
    wanted: Mapping[str, str]
    """Of each attribute after the edits."""

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Answer, ...]: ...
    def __getitem__(self, index: int | slice) -> Answer | tuple[Answer, ...]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)


@dataclass(frozen=True)
class Request:
    """What `Searcher.search` is asked; see there."""

    image: Source | None = None
    item: str | None = None
    edits: Mapping[str, str] = field(default_factory=lambda: {})
    k: int = 10
    weights: Mapping[str, float] = field(default_factory=lambda: {})
    like: Sequence[str] = ()
    filters: Mapping[str, Any] = field(default_factory=lambda: {})


@dataclass(frozen=True)
class Start:
    """Where a search starts from: an embedding and what the classifiers see in it."""

    embedding: Vector
    """(A, D) float32, not normalised."""
    predicted: Labels
    """(A,) int64."""
    seen: Mapping[str, Seen]


class Searcher:
    """Searches one gallery with one bundle; calls may come from several threads.

    Args:
        bundle: a bundle or its folder.
        gallery: a gallery or its folder; a folder of shards is embedded first and kept.
        devices: where the graphs run; see `Session`.
        session: one that is open already, which is then used instead.

    Raises:
        UserError: bundle, gallery or device is not to be had, or another bundle embedded the
            gallery.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        gallery: Gallery | Path | str,
        devices: Device | Sequence[Device] = "cpu",
        session: Session | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.read(Path(bundle))
        self.schema: Schema = self.bundle.schema
        self.session = session or Session(self.bundle, devices)
        if isinstance(gallery, str | Path):
            gallery = open_or_build(self.bundle, self.session, Path(gallery))
        gallery.header.require_bundle(self.bundle, Path("gallery"))
        self.gallery: Gallery = gallery

    def search(
        self,
        image: Source | None = None,
        edits: Mapping[str, str] | None = None,
        k: int = 10,
        weights: Mapping[str, float] | None = None,
        like: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
        item: str | None = None,
    ) -> Result:
        """The `k` items nearest to the edited picture, best first.

        Args:
            image: the picture to start from; the values that edits take away are those the
                classifiers see in it.
            edits: attribute to new value, any number of them.
            k: answers wanted; all items where the gallery has fewer.
            weights: attribute to its weight in the distance; 1 where not given.
            like: if any, only these attributes count.
            filters: what answers must have; see `adde.serving.filters`.
            item: id of an item of the gallery to start from instead; it is no answer itself.

        Raises:
            UserError: neither or both of image and item, a picture that does not decode, or a
                name, value, weight or filter that is not valid; names the nearest valid ones.
        """
        request = Request(image, item, edits or {}, k, weights or {}, like, filters or {})
        return self.search_batch([request])[0]

    def search_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answers several requests; their pictures are embedded together."""
        for request in requests:
            self.check(request)
        pictures = [self.picture(r.image) for r in requests if r.image is not None]
        embedded = iter(self.embed(pictures))
        starts = [self.start_of(r.item) if r.item is not None else next(embedded) for r in requests]
        return [self.answer(request, start) for request, start in zip(requests, starts)]

    def check(self, request: Request) -> None:
        """Raises UserError where `search` would, as far as the request alone tells."""
        if (request.image is None) == (request.item is None):
            raise UserError("expected one of image and item, found both or neither")
        if not 1 <= request.k <= MAX_K:
            raise UserError(f"k: expected 1 to {MAX_K}, found {request.k}")
        self.schema.encode(request.edits)
        self.weights(request)

    def picture(self, source: Source) -> Picture:
        """A picture as the encoder takes it, (S, S, 3) uint8. Raises UserError as `decode`."""
        if isinstance(source, np.ndarray):
            return source
        if isinstance(source, str):
            source = Path(source)
        return self.bundle.preprocess.load(source)

    def embed(self, pictures: Sequence[Picture]) -> list[Start]:
        """Starts of any number of pictures, in one batch."""
        if not pictures:
            return []
        embeddings, logits, _ = self.session.encode(np.stack(pictures))
        predicted = predicted_labels(logits, self.schema)
        return [
            Start(embedding, labels, self._seen(labels, row))
            for embedding, labels, row in zip(embeddings, predicted, logits)
        ]

    def start_of(self, item_id: str) -> Start:
        """The start of an item of the gallery, from its stored embedding."""
        item = self.gallery.get(item_id)
        seen = {name: Seen(value, 1.0) for name, value in _named(self.schema, item.predicted)}
        return Start(item.vector * np.float32(item.norm), item.predicted, seen)

    def answer(self, request: Request, start: Start) -> Result:
        """Edits a start and ranks the gallery by its distance."""
        asked = self.schema.encode(request.edits)
        targets = np.where(asked == UNKNOWN, start.predicted, asked)
        indicator = self.schema.indicator(start.predicted[None], targets[None])
        query = self.session.edit(start.embedding[None], indicator)[0]
        query = query.reshape(start.embedding.shape)
        weights = self.weights(request)
        items = self.gallery.nearest(query, weights, request.k, request.filters, request.item)
        wanted = dict(_named(self.schema, targets))
        return Result(self._ranked(items, query, weights, wanted, request.k), start.seen, wanted)

    def weights(self, request: Request) -> Vector:
        """(A,) float32 weights of a request. Raises UserError where they are none."""
        names = self.schema.names
        weights = np.ones(len(names), np.float32)
        for name, weight in request.weights.items():
            if not 0 <= weight <= MAX_WEIGHT:  # NaN is neither
                raise UserError(f"weights: {name!r}: expected 0 to {MAX_WEIGHT:g}, found {weight}")
            weights[self.schema.attribute_index(name)] = weight
        for name in request.like:
            if name not in names:
                raise UserError(f"like: unknown attribute {name!r}; {did_you_mean(name, names)}")
        if request.like:
            weights[[name not in request.like for name in names]] = 0
        if not weights.any():
            raise UserError("weights: expected at least one above 0, found none")
        return weights

    def _ranked(
        self,
        items: Sequence[Item],
        query: Vector,
        weights: Vector,
        wanted: Mapping[str, str],
        k: int,
    ) -> tuple[Answer, ...]:
        if not items:
            return ()
        # Differences, not products: exact where items are near, and a pair's distance does not
        # depend on what else was found.
        vectors = np.stack([item.vector for item in items])
        parts = np.square(vectors - query).sum(axis=2) * weights
        distances = parts.sum(axis=1)
        order = np.argsort(distances, kind="stable")[:k]
        return tuple(
            self._answer(items[int(at)], float(distances[at]), parts[at], wanted) for at in order
        )

    def _answer(
        self, item: Item, distance: float, parts: Vector, wanted: Mapping[str, str]
    ) -> Answer:
        shares = parts / distance if distance > 0 else np.zeros_like(parts)
        labels = self.schema.decode(item.labels)
        matches: dict[str, Match] = {}
        for (name, seen), share in zip(_named(self.schema, item.predicted), shares):
            known = labels[name]
            value = seen if known is None else known
            matches[name] = Match(value, known is None, seen, wanted[name], float(share))
        return Answer(item.item_id, distance, labels, item.fields, matches, item)

    def _seen(self, labels: Labels, logits: Vector) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        columns = dict(zip(self.schema.names, np.split(logits, self.schema.offsets[1:])))
        for name, value in _named(self.schema, labels):
            powers = np.exp(columns[name].astype(np.float64) - columns[name].max())
            seen[name] = Seen(value, float(powers.max() / powers.sum()))
        return seen


def _named(schema: Schema, labels: Labels) -> list[tuple[str, str]]:
    """Names and values of labels (A,) of which none is UNKNOWN."""
    return [(name, value) for name, value in schema.decode(labels).items() if value is not None]
