"""Picture and edits in, ranked items out: this item, but with these values."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adde.bundle import Bundle
from adde.metrics import predicted_labels, top_k
from adde.preprocess import Picture
from adde.schema import UNKNOWN, Labels
from adde.serving.gallery import Gallery
from adde.serving.session import Session


@dataclass(frozen=True)
class Match:
    """One attribute of an answer, held against what was asked for."""

    value: str
    """The answer's value, as the catalogue has it."""
    predicted: bool
    """The catalogue does not say; `value` is what the classifier sees."""
    wanted: str
    """The query's predicted value, or the edit's."""

    @property
    def good(self) -> bool:
        """The answer has the wanted value."""
        return self.value == self.wanted


@dataclass(frozen=True)
class Answer:
    """One item of the gallery as an answer."""

    item_id: str
    score: float
    """Cosine of the edited query and the item, -1 to 1."""
    labels: Mapping[str, str | None]
    """As the catalogue has them; None where it does not say."""
    matches: Mapping[str, Match]
    row: int
    """In the gallery, whose `place` and `sample` lead to the picture."""

    @property
    def good(self) -> bool:
        """Every attribute that the catalogue knows of the answer has the wanted value."""
        return all(match.good or match.predicted for match in self.matches.values())


class Searcher:
    """Searches one gallery with one bundle."""

    def __init__(self, bundle: Bundle, session: Session, gallery: Gallery) -> None:
        self._schema, self._session, self._gallery = bundle.schema, session, gallery

    def search(self, picture: Picture, edits: Mapping[str, str], k: int = 10) -> list[Answer]:
        """The `k` items nearest to the edited picture, best first.

        The values taken away are those the classifiers see in the picture.

        Args:
            picture: (S, S, 3) uint8, as `bundle.preprocess.load` gives it.
            edits: attribute to new value, any number of them.
            k: answers wanted; all items where the gallery has fewer.

        Raises:
            UserError: an attribute or value is not in the schema; names the nearest valid ones.
        """
        embeddings, logits = self._session.encode(picture[None])
        own = predicted_labels(logits, self._schema)
        asked = self._schema.encode(edits)
        targets = np.where(asked == UNKNOWN, own, asked)
        query = self._session.edit(embeddings, self._schema.indicator(own, targets))
        rows = top_k(query, self._gallery.embeddings, k)[0]
        scores = self._gallery.embeddings[rows] @ query[0]
        return [
            self._answer(row, score, targets[0])
            for row, score in zip(rows.tolist(), scores.tolist())
        ]

    def _answer(self, row: int, score: float, targets: Labels) -> Answer:
        gallery, schema = self._gallery, self._schema
        known, seen = gallery.labels[row], gallery.predicted[row]
        matches: dict[str, Match] = {}
        for number, attribute in enumerate(schema.attributes):
            value, predicted = int(known[number]), bool(known[number] == UNKNOWN)
            shown = attribute.values[int(seen[number]) if predicted else value]
            wanted = attribute.values[int(targets[number])]
            matches[attribute.name] = Match(shown, predicted, wanted)
        return Answer(gallery.item_ids[row], score, schema.decode(known), matches, row)
