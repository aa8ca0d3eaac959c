"""The gallery engine that stores vectors in Milvus, for catalogues that outgrow one machine.

The folder holds only gallery.json, with address and collection. The token is read from MILVUS_TOKEN
and never written. One client serves Milvus Lite files, servers and clusters.
"""

import sys
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.metrics import smallest
from adde.schema import UNKNOWN, Labels, Vector
from adde.scoring import likeliest
from adde.serving import text_search
from adde.serving.gallery import filters as filtering
from adde.serving.gallery.base import (
    Gallery,
    Header,
    Item,
    ItemNotFoundError,
    UnavailableError,
    beliefs_to_store,
    facts,
    require_unique,
)
from adde.serving.gallery.facets import Facet, facets_of
from adde.serving.gallery.milvus_client import (
    SEARCH_TIMEOUT,
    TIMEOUT,
    connect,
    create_collection,
    id_filter,
    translate_errors,
)
from adde.serving.gallery.scorers import BY_DISTANCE, SLACK, DistanceScorer, RankOptions, augmented

PROBE_TIMEOUT = 1.0

RANDOM_QUERIES = 4
"""Random query vectors; items to start from are their nearest neighbours."""

FACET_SAMPLE = 1000
"""Items sampled to summarise fields."""

BELIEFS = "vectors"
"""How a collection holds beliefs; earlier versions had text."""

MIN_CANDIDATES, MAX_CANDIDATES = 1000, 10_000
"""Minimum and maximum number of nearest vectors re-ranked by match."""

UNIT_DEPTH = 8
"""Candidates per answer where unit subspaces are compared, whose order Milvus only approximates."""

FIELDS = ["id", "vector", "norm", "record"]


class MilvusGallery:
    """A Milvus collection as a gallery.

    Raises:
        UserError: Milvus is not installed or not reachable, or the collection does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.header = Header.read(folder)
        if self.header.calibrated and self.header.extra.get("beliefs") != BELIEFS:
            raise UserError(
                f"{folder}: expected a collection of this version, with beliefs as vectors, found "
                "an older one; build the gallery again"
            )
        self._uri, self._collection = self.header.extra["uri"], self.header.extra["collection"]
        attributes = len(self.header.schema.sizes)
        self._shape = (attributes, self.header.width)
        self._fields = [*FIELDS, "beliefs"] if self.header.calibrated else FIELDS
        self._client = connect(self._uri)
        with self._translate_errors():
            there = self._client.has_collection(self._collection)
        if not there:
            raise UserError(
                f"{self._uri}: expected collection {self._collection}, found none; build the "
                "gallery again"
            )
        with self._translate_errors():
            self._client.load_collection(self._collection, timeout=TIMEOUT)
        self._loaded = True

    @classmethod
    def creator(cls, uri: str) -> Callable[[Path, Header], Gallery]:
        """Return a function that creates galleries at an address."""

        def create(folder: Path, header: Header) -> Gallery:
            if header.schema.multiple:
                raise UserError(
                    "--engine milvus: expected attributes of one value per item, found "
                    f"{header.schema.names[header.schema.multiple[0]]!r}, which may have several; "
                    "build the gallery with --engine embedded"
                )
            # A new name, so that the collection being served meanwhile is not touched.
            collection = f"adde_{header.bundle}_{uuid.uuid4().hex[:8]}"
            client = connect(uri)
            with translate_errors(uri):
                create_collection(client, collection, header)
            folder.mkdir(parents=True)
            extra = {"uri": uri, "collection": collection}
            replace(header, engine="milvus", extra={**extra, "beliefs": BELIEFS}).write(folder)
            return cls(folder)

        return create

    def __len__(self) -> int:
        return self._count(SEARCH_TIMEOUT)

    def probe(self) -> int:
        """See `Gallery`."""
        with self._translate_errors():
            if not self._loaded:  # a restarted server may have to load it again
                self._client.load_collection(self._collection, timeout=PROBE_TIMEOUT)
        items = self._count(PROBE_TIMEOUT)
        self._loaded = True
        return items

    def _count(self, seconds: float) -> int:
        with self._translate_errors():
            found = self._client.query(
                self._collection, filter="", output_fields=["count(*)"], timeout=seconds
            )
        return int(found[0]["count(*)"])

    def nearest(
        self,
        query: Vector,
        weights: Vector,
        k: int,
        filters: Mapping[str, Any],
        exclude: str | None = None,
        asked: RankOptions = BY_DISTANCE,
    ) -> list[Item]:
        """See `Gallery`. Matches are chosen among the nearest vectors, at least MIN_CANDIDATES;
        items that complete an outfit, among all.
        """
        conditions = self._conditions(filters)
        clauses = [filtering.to_milvus(conditions)]
        if exclude is not None:
            clauses.append(f"id != {filtering.literal(exclude)}")
        clauses += [self._shown_label_filter(a, labels) for a, labels in asked.must.items()]
        by_match, near = asked.wanted is not None, DistanceScorer(query, weights, asked.unit)
        limit = k * (UNIT_DEPTH if asked.unit else 1) + SLACK
        if by_match:
            limit = min(max(MIN_CANDIDATES, 20 * k), MAX_CANDIDATES)
        field, vector = "vector", near.vector
        if asked.completing is not None:
            field, vector = "beliefs", asked.completing
        with self._translate_errors():
            (hits,) = self._client.search(
                self._collection,
                data=[vector.tolist()],
                anns_field=field,
                search_params={"metric_type": "IP"},
                limit=limit,
                filter=" and ".join(clause for clause in clauses if clause),
                output_fields=["beliefs"] if by_match else self._fields,
                timeout=SEARCH_TIMEOUT,
                consistency_level="Bounded",  # may be seconds old, but does not wait for writers
            )
        if not hits:
            self._require_kinds(conditions)
        if asked.wanted is None or not hits:
            return [self._item(hit["entity"]) for hit in hits]
        beliefs = np.array([hit["entity"]["beliefs"] for hit in hits], np.float32)
        best: dict[str, None] = {}
        for match, count in asked.match_scorers(weights, self.header.schema, k + SLACK):
            first = smallest(-match(beliefs)[None], count)[0].tolist()  # ties to the nearest
            best |= dict.fromkeys(hits[at]["id"] for at in first)
        return self._items([*best])

    def _shown_label_filter(self, attribute: int, labels: Labels) -> str:
        name = f'record["shown"][{attribute}]'
        return f"({' or '.join(f'{name} == {label}' for label in labels.tolist())})"

    def _conditions(self, filters: Mapping[str, Any]) -> list[filtering.Condition]:
        return filtering.parse(filters, self._known_names(filters), self.header.schema)

    def _require_kinds(self, conditions: Sequence[filtering.Condition]) -> None:
        """See `filters.require_kind`. Called only if nothing was found, because each check is a
        query.
        """
        for condition in conditions:
            if not self._any_item(filtering.to_milvus([condition])):
                filtering.require_kind(condition, self._value_kinds(condition.name))

    def _value_kinds(self, name: str) -> list[str]:
        """Return the kinds of values in a field: "numbers", "text", or both."""
        field = f"facts[{filtering.literal(name)}]"
        tests = {"numbers": f"{field} >= {-sys.float_info.max}", "text": f'{field} >= ""'}
        return [kind for kind, test in tests.items() if self._any_item(test)]

    def _known_names(self, filters: Mapping[str, Any]) -> list[str]:
        """Return the names that filters may use: attributes, and those of the given fields that
        exist.
        """
        names = [*self.header.schema.names]
        for name in filters:
            if name not in names:
                exists = self._any_item(f"exists facts[{filtering.literal(name)}]")
                names += [name] if exists else []
        return names

    def _any_item(self, clause: str) -> bool:
        """Whether any item passes."""
        with self._translate_errors():
            found = self._client.query(
                *(self._collection, clause), output_fields=["id"], limit=1, timeout=SEARCH_TIMEOUT
            )
        return bool(found)

    def get(self, item_id: str) -> Item:
        """See `Gallery`."""
        found = self._items([item_id])
        if not found:
            raise ItemNotFoundError(f"no item {item_id!r} in the gallery")
        return found[0]

    def _items(self, item_ids: Sequence[str]) -> list[Item]:
        """Fetch the existing ones among these items, in the order of the ids."""
        chosen = id_filter(item_ids)
        with self._translate_errors():
            found = self._client.query(
                self._collection, filter=chosen, output_fields=self._fields, timeout=SEARCH_TIMEOUT
            )
        items = {entity["id"]: self._item(entity) for entity in found}
        return [items[item_id] for item_id in item_ids if item_id in items]

    def _item(self, entity: Mapping[str, Any]) -> Item:
        record = entity["record"]
        vector = np.array(entity["vector"], np.float32)[: self._shape[0] * self._shape[1]]
        return Item(
            item_id=entity["id"],
            labels=np.array(record["labels"], np.int64),
            predicted=np.array(record["predicted"], np.int64),
            vector=vector.reshape(self._shape),
            norm=float(entity["norm"]),
            fields=record["fields"],
            place=tuple(record["place"]) if record["place"] else None,
            beliefs=np.array(entity["beliefs"], np.float32) if self.header.calibrated else None,
        )

    def browse(
        self, text: str, filters: Mapping[str, Any], count: int, offset: int = 0, seed: int = 0
    ) -> list[Item]:
        """See `Gallery`. Without text, items near random directions, which may repeat on later
        pages.
        """
        if not text.strip():
            return self._random_items(filters, count, (seed, offset))
        asked = text_search.to_milvus(text, 'record["text"]')
        if not asked:
            return []
        conditions = self._conditions(filters)
        passing = filtering.to_milvus(conditions)
        with self._translate_errors():
            found = self._client.query(
                self._collection,
                filter=" and ".join(clause for clause in (passing, asked) if clause),
                output_fields=FIELDS,
                limit=count,
                offset=offset,
                timeout=SEARCH_TIMEOUT,
            )
        if not found:
            self._require_kinds(conditions)
        return [self._item(entity) for entity in found]

    def _random_items(
        self, filters: Mapping[str, Any], count: int, seed: tuple[int, int]
    ) -> list[Item]:
        draws = np.random.default_rng(seed)
        weights = np.ones(self._shape[0], np.float32)
        found: dict[str, Item] = {}
        for _ in range(RANDOM_QUERIES):
            query = draws.normal(size=self._shape).astype(np.float32)
            query /= np.linalg.norm(query)
            near = self.nearest(query, weights, RANDOM_QUERIES * count, filters)
            found |= {item.item_id: item for item in near}
        items = list(found.values())
        return [items[at] for at in draws.permutation(len(items))[:count]]

    def facets(self) -> list[Facet]:
        """See `Gallery`; from a sample, because Milvus cannot list the values of a JSON path."""
        with self._translate_errors():
            found = self._client.query(
                self._collection,
                filter="",
                output_fields=["record"],
                limit=FACET_SAMPLE,
                timeout=SEARCH_TIMEOUT,
            )
        return facets_of(entity["record"]["fields"] for entity in found)

    def upsert(self, items: Sequence[Item]) -> None:
        """See `Gallery`."""
        if not items:
            return
        require_unique(items)
        id_filter([item.item_id for item in items])  # reject ids that could not be queried
        vectors = augmented(np.stack([item.vector for item in items]).astype(np.float32))
        known = [facts(self.header.schema, item) for item in items]
        labels = np.stack([item.labels for item in items])
        shown = np.where(labels == UNKNOWN, np.stack([i.predicted for i in items]), labels)
        beliefs = beliefs_to_store(self.header, items)
        if beliefs is not None:
            shown = likeliest(beliefs, self.header.schema)
        rows: list[dict[str, Any]] = [
            {
                "id": item.item_id,
                "vector": vector.tolist(),
                "norm": item.norm,
                "facts": one,
                "record": {
                    "labels": item.labels.tolist(),
                    "predicted": item.predicted.tolist(),
                    "shown": values.tolist(),
                    "fields": dict(item.fields),
                    "place": item.place,
                    "text": text_search.searchable_text(item.item_id, one),
                },
            }
            for item, vector, one, values in zip(items, vectors, known, shown)
        ]
        if beliefs is not None:
            for row, stored in zip(rows, beliefs):
                row["beliefs"] = stored.tolist()
        with self._translate_errors():
            self._client.upsert(self._collection, rows, timeout=TIMEOUT)

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Gallery`."""
        if not item_ids:
            return 0
        chosen = id_filter(item_ids)
        with self._translate_errors():
            there = self._client.query(
                self._collection, filter=chosen, output_fields=["id"], timeout=TIMEOUT
            )
            if there:
                self._client.delete(self._collection, filter=chosen, timeout=TIMEOUT)
        return len(there)

    def finish(self) -> None:
        """Flush; Milvus builds its index by itself."""
        with self._translate_errors():
            self._client.flush(self._collection, timeout=60)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _translate_errors(self) -> Generator[None]:
        """Translate errors, and note that the collection may have to be loaded again."""
        try:
            with translate_errors(self._uri):
                yield
        except UnavailableError:
            self._loaded = False
            raise
