"""Search: a picture and edits in, ranked items out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adde.bundle import Bundle
from adde.drawing import overlaid, shrunk
from adde.errors import UserError, did_you_mean
from adde.metrics import predicted_labels
from adde.preprocess import Picture
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import Calibration, as_query, likeliest, parts, with_known
from adde.serving import attribute_edits
from adde.serving.answers import Rank, Result, Seen
from adde.serving.attribute_edits import Edits
from adde.serving.drawing import Drawing, check_drawing
from adde.serving.gallery.base import Gallery, read_picture
from adde.serving.gallery.opening import open_or_build
from adde.serving.gallery.scorers import MatchScorer, RankOptions
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.serving.outfits import Fitting, check_outfit, fittings, mean_outfit, with_absence
from adde.serving.ranking import AnswerRanker

MAX_WEIGHT = 1000.0
MAX_K = 1000
"""Maximum k + offset."""

ImageInput = bytes | str | Path | Picture
"""A picture file's content, its path, or (S, S, 3) uint8 as returned by `bundle.preprocess.load`.
"""


@dataclass(frozen=True)
class Request:
    """A request to `Searcher.search`; see there."""

    image: ImageInput | None = None
    item: str | None = None
    edits: Edits = field(default_factory=lambda: {})
    k: int = 10
    weights: Mapping[str, float] = field(default_factory=lambda: {})
    like: Sequence[str] = ()
    filters: Mapping[str, Any] = field(default_factory=lambda: {})
    rank: Rank | None = None
    must: Sequence[str] = ()
    offset: int = 0


@dataclass(frozen=True)
class Start:
    """The starting point of a search."""

    embedding: Vector
    """(A, D) float32, not normalised."""
    own: Labels
    """(A,) int64 values that edits remove: the known one, otherwise the likeliest."""
    seen: Mapping[str, Seen]
    beliefs: Vector | None
    """(V + A,) float32; None for an uncalibrated bundle."""


class Searcher:
    """Searches one gallery with one bundle; safe to call from several threads.

    Args:
        bundle: a bundle or its folder.
        gallery: a gallery or its folder; a folder of shards is embedded first and cached.
        devices: where the graphs run; see `Session`.
        session: an open session to use instead of opening one.

    Raises:
        UserError: bundle, gallery or device is unavailable, or another bundle embedded the gallery.
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
        self.calibration: Calibration | None = (
            self.bundle.calibration if gallery.header.calibrated else None
        )

    def search(
        self,
        image: ImageInput | None = None,
        edits: Edits | None = None,
        k: int = 10,
        weights: Mapping[str, float] | None = None,
        like: Sequence[str] = (),
        filters: Mapping[str, Any] | None = None,
        item: str | None = None,
        rank: Rank | None = None,
        must: Sequence[str] = (),
        offset: int = 0,
    ) -> Result:
        """Return the `k` items that best match the edited picture, best first.

        Args:
            image: the picture to start from.
            edits: attribute to new value, `Not(values)` or `More(value, amount)`. The values
                replaced are those known of an item, or predicted from the picture.
            k: maximum number of answers.
            weights: attribute to its weight in score and distance; default 1.
            like: if given, only these attributes count. By distance, `weights` and `like` compare
                subspaces of unit length, so that a weight means the same in every recipe.
            filters: conditions on answers; see `adde.serving.gallery.filters`.
            item: id of a gallery item to start from instead; it is not an answer itself.
            rank: by match probability (`adde.scoring`; needs a calibrated bundle), or by distance
                from the edited embedding, as published. Default: match if calibrated.
            must: edited attributes whose new value every answer must show.
            offset: answers to skip.

        Raises:
            UserError: not exactly one of image and item, a picture that does not decode, an invalid
                name, value, weight or filter (names the nearest valid ones), or ranking by match
                without a calibration.
        """
        request = Request(
            image, item, edits or {}, k, weights or {}, like, filters or {}, rank, must, offset
        )
        return self.search_batch([request])[0]

    @property
    def outfits(self) -> str | None:
        """The attribute whose values `complete` takes; None where the bundle has no outfit head."""
        attribute = self.bundle.category
        return None if attribute is None else self.schema.names[attribute]

    def similar(
        self,
        item: str,
        like: Sequence[str],
        k: int = 10,
        rank: Rank | None = None,
        filters: Mapping[str, Any] | None = None,
        offset: int = 0,
    ) -> Result:
        """Find the `k` items most like an item in some attributes, whatever else they show.

        Args:
            item: id of an item of the gallery; it is no answer itself.
            like: the attributes. By match they are compared by the probability that they agree, by
                distance within their subspaces of unit length.
            k: see `search`, as the others.
            rank: see there.
            filters: see there.
            offset: see there.

        Raises:
            UserError: as `search`, or no attribute is named.
        """
        if not like:
            raise UserError(
                "like: expected one or more attributes, found none; Searcher.search compares all"
            )
        return self.search(item=item, like=like, k=k, rank=rank, filters=filters, offset=offset)

    def complete(
        self,
        items: Sequence[str],
        category: str,
        k: int = 10,
        filters: Mapping[str, Any] | None = None,
        images: Sequence[ImageInput] = (),
    ) -> tuple[Fitting, ...]:
        """Find the `k` items of a category that go best with an outfit, best first.

        It is one search, however many items the outfit has.

        Args:
            items: ids of the gallery's items that are there already; none is an answer.
            category: value of the bundle's category attribute that is to be found.
            k: answers wanted; all items of the category where the gallery has fewer.
            filters: what answers must have besides; see `adde.serving.gallery.filters`.
            images: pictures of further items that are there.

        Raises:
            UserError: the bundle has no outfit head; no item or one twice; an item or category that
                there is not, or of which the gallery has no other item.
        """
        check_outfit(self.bundle, items, len(images))
        pictures = self.embed([self.picture(image) for image in images])
        return self.completed(items, pictures, category, k, filters or {})

    def completed(
        self,
        items: Sequence[str],
        pictures: Sequence[Start],
        category: str,
        k: int,
        filters: Mapping[str, Any],
    ) -> tuple[Fitting, ...]:
        """As `complete`, of pictures that are embedded already."""
        check_outfit(self.bundle, items, len(pictures))
        schema, attribute = self.schema, self.bundle.category
        assert attribute is not None
        name = schema.names[attribute]
        target = schema.value_index(name, category)
        if not 1 <= k <= MAX_K - len(items):
            raise UserError(f"k: expected 1 to {MAX_K - len(items)}, found {k}")
        if name in filters:
            raise UserError(f"filters: expected none of {name!r}, which the category is, found one")
        starts = [*map(self.start_of, items), *pictures]
        beliefs = np.stack([start.beliefs for start in starts if start.beliefs is not None])
        kinds = [int(start.own[attribute]) for start in starts]
        outfit = mean_outfit(beliefs, kinds, schema, schema.sizes[attribute])
        query = with_absence(self.session.complete(outfit)[0, target], schema)
        nearest = np.stack([start.embedding for start in starts]).sum(axis=0)
        found = self.gallery.nearest(
            nearest / np.maximum(np.linalg.norm(nearest), np.float32(1e-12)),
            np.ones(len(schema.names), np.float32),
            k + len(items),
            {**filters, name: category},
            asked=RankOptions(completing=query),
        )
        others = [item for item in found if item.item_id not in items]
        if not others:
            besides = " that pass the filters" if filters else ""
            raise UserError(
                f"category: expected items of {name} {category!r} in the gallery{besides} other "
                "than those of the outfit, found none"
            )
        return fittings(others, query, schema, k)

    def draw(
        self,
        image: ImageInput | None = None,
        edits: Edits | None = None,
        item: str | None = None,
    ) -> Drawing:
        """Draw how a picture would look with other values; a model draws it, it is no photograph.

        Args:
            image: the picture to start from.
            edits: see `search`; several at once are drawn together. Pixels that they do not
                change stay those of the picture (`adde.drawing`).
            item: id of a gallery item to start from instead.

        Raises:
            UserError: the bundle has no decoder; not exactly one of image and item; an invalid
                edit; an item without a picture.
        """
        if (image is None) == (item is None):
            raise UserError("expected one of image and item, found both or neither")
        check_drawing(self.bundle, edits or {})
        if item is None:
            assert image is not None
            picture = self.picture(image)
            return self.drawn(self.embed([picture])[0], picture, edits or {})
        content = read_picture(self.gallery.header, self.gallery.get(item))
        return self.drawn(self.start_of(item), self.picture_of(item, content), edits or {})

    def picture_of(self, item_id: str, content: bytes | None) -> Picture:
        """Load an item's picture from what `read_picture` gives; raise UserError if it is None."""
        if content is None:
            raise UserError(
                f"item: expected one with a picture beside the gallery, found none of {item_id!r}; "
                "give the picture itself as image"
            )
        return self.picture(content)

    def drawn(self, start: Start, picture: Picture, edits: Edits) -> Drawing:
        """As `draw`, of a picture (S, S, 3) uint8 that is embedded already."""
        check_drawing(self.bundle, edits)
        changed = attribute_edits.indicator(edits, start.own, self.schema)
        own = start.embedding[None]
        edited = self.session.edit(own, changed).reshape(own.shape)
        style = self.session.style(picture[None])
        drawn = self.session.draw(np.concatenate([own, edited]), np.repeat(style, 2, axis=0))
        found = overlaid(shrunk(picture[None], drawn.shape[1]), drawn[:1], drawn[1:])[0]
        wanted = {name: seen.value for name, seen in start.seen.items()}
        wanted |= {name: str(edit) for name, edit in edits.items()}
        return Drawing(found, start.seen, wanted, self.bundle.hash)

    def search_batch(self, requests: Sequence[Request]) -> list[Result]:
        """Answer several requests; their pictures are encoded together."""
        for request in requests:
            self.check(request)
        pictures = [self.picture(r.image) for r in requests if r.image is not None]
        embedded = iter(self.embed(pictures))
        starts = [self.start_of(r.item) if r.item is not None else next(embedded) for r in requests]
        return [self.answer(request, start) for request, start in zip(requests, starts)]

    def check(self, request: Request) -> None:
        """Check a request without searching. Raises UserError as `search` does."""
        if (request.image is None) == (request.item is None):
            raise UserError("expected one of image and item, found both or neither")
        if not 1 <= request.k <= MAX_K:
            raise UserError(f"k: expected 1 to {MAX_K}, found {request.k}")
        if not 0 <= request.offset <= MAX_K - request.k:
            raise UserError(
                f"offset: expected 0 to {MAX_K - request.k}, as k is {request.k} of at most "
                f"{MAX_K} answers, found {request.offset}"
            )
        attribute_edits.check(request.edits, self.schema)
        for name in request.must:
            self.schema.attribute_index(name)
            if name not in request.edits:
                raise UserError(
                    f"must: expected an edited attribute, found {name!r}, which is not edited; "
                    "edit it, or require the value with filters"
                )
        self.rank(request)
        self.weights(request)

    def rank(self, request: Request) -> Rank:
        """Return what a request is ranked by. Raises UserError if that is impossible."""
        if request.rank not in ("match", "distance", None):
            raise UserError(f"rank: expected 'match' or 'distance', found {request.rank!r}")
        if request.rank == "match" and self.calibration is None:
            what = "gallery" if self.bundle.calibration else "bundle"
            again = "build the gallery" if self.bundle.calibration else "export the run"
            raise UserError(
                f"rank: 'match' needs a calibrated bundle, and this {what} has no calibration; "
                f"{again} again, or use 'distance'"
            )
        return request.rank or ("distance" if self.calibration is None else "match")

    def picture(self, source: ImageInput) -> Picture:
        """Load a picture as encoder input, (S, S, 3) uint8. Raises UserError as `decode`."""
        if isinstance(source, np.ndarray):
            return source
        if isinstance(source, str):
            source = Path(source)
        return self.bundle.preprocess.load(source)

    def embed(self, pictures: Sequence[Picture]) -> list[Start]:
        """Make starting points from pictures, encoded in one batch."""
        if not pictures:
            return []
        embeddings, logits, presence = self.session.encode(np.stack(pictures))
        own = predicted_labels(logits, self.schema)
        # Uncalibrated: the classifiers' softmax, which has no absence.
        plain = Calibration((1.0,) * len(self.schema.sizes), (), 0.0, 1.0)
        beliefs = (self.calibration or plain).beliefs(logits, presence, self.schema)
        return [
            Start(embedding, labels, self._seen(row), None if self.calibration is None else row)
            for embedding, labels, row in zip(embeddings, own, beliefs)
        ]

    def start_of(self, item_id: str) -> Start:
        """Make the starting point of a gallery item: known labels, otherwise predictions."""
        item = self.gallery.get(item_id)
        own = np.where(item.labels == UNKNOWN, item.predicted, item.labels)
        beliefs = None if self.calibration is None else item.beliefs
        seen = self._seen(_certain_beliefs(own, self.schema) if beliefs is None else beliefs)
        for name, label in zip(self.schema.names, item.labels.tolist()):
            if label != UNKNOWN:
                seen[name] = Seen(seen[name].value, 1.0, known=True)
            elif beliefs is None:
                seen[name] = Seen(seen[name].value, None)
        return Start(item.vector * np.float32(item.norm), own, seen, beliefs)

    def _seen(self, beliefs: Vector) -> dict[str, Seen]:
        labels = likeliest(beliefs[None], self.schema)[0].tolist()
        return {
            name: Seen(self.schema.text(a, labels[a]), float(beliefs[part].max()))
            for a, (name, part) in enumerate(zip(self.schema.names, parts(self.schema)))
        }

    def answer(self, request: Request, start: Start) -> Result:
        """Apply the edits to a starting point and rank the gallery."""
        question = self._ranker(request, start)
        matching = question.matching if question.rank == "match" else None
        items = self.gallery.nearest(
            question.query,
            question.weights,
            request.offset + request.k,
            request.filters,
            request.item,
            RankOptions(
                wanted=None if matching is None else matching.wanted,
                first=question.first,
                epsilon=0.0 if matching is None else matching.epsilon,
                must={a: question.good[a] for a in map(self.schema.attribute_index, request.must)},
                unit=question.unit,
            ),
        )
        answers = question.answers(items)[request.offset : request.offset + request.k]
        return Result(answers, start.seen, question.wanted, question.rank)

    def _ranker(self, request: Request, start: Start) -> AnswerRanker:
        schema, rank, weights = self.schema, self.rank(request), self.weights(request)
        changed = attribute_edits.indicator(request.edits, start.own, schema)
        query = self.session.edit(start.embedding[None], changed)[0]
        wanted = {name: seen.value for name, seen in start.seen.items()}
        good: dict[int, Labels] = {}
        for name, edit in request.edits.items():
            a = schema.attribute_index(name)
            wanted[name] = str(edit)
            good[a] = np.array(attribute_edits.acceptable_labels(edit, schema, a))
        matching, first = None, None
        if self.calibration is not None and start.beliefs is not None:
            asked = as_query(start.beliefs[None], schema)
            for name, edit in request.edits.items():
                a = schema.attribute_index(name)
                attribute_edits.set_wanted(edit, asked, parts(schema)[a], schema, a)
            # If only edited attributes have weight, their extra weight does not change the order.
            unedited = [a for a in range(len(weights)) if a not in good]
            if rank == "match" and good and weights[unedited].any():
                first = weights.copy()
                first[list(good)] *= self.calibration.edit_weight
            matching = MatchScorer(asked[0], weights, self.calibration.epsilon, schema)
        return AnswerRanker(
            schema=schema,
            rank=rank,
            query=query.reshape(start.embedding.shape),
            weights=weights,
            unit=rank == "distance" and bool(request.like or request.weights),
            matching=matching,
            first=first,
            wanted=wanted,
            good=good,
        )

    def weights(self, request: Request) -> Vector:
        """Return a request's weights, (A,) float32. Raises UserError if they are invalid."""
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


def _certain_beliefs(labels: Labels, schema: Schema) -> Vector:
    """Beliefs (V + A,) that hold labels (A,) for certain; none may be UNKNOWN."""
    none = np.zeros((1, schema.num_values + len(schema.sizes)), np.float32)
    return with_known(none, labels[None], schema)[0]
