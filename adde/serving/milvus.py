"""The gallery whose vectors lie in Milvus, for catalogues that outgrow a machine.

The folder holds gallery.json alone: address and collection. A token is read from MILVUS_TOKEN and
written nowhere. The same client reaches a file of Milvus Lite, a server and a cluster.
"""

import importlib
import os
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from adde.errors import UserError
from adde.schema import Vector
from adde.serving import filters as filtering
from adde.serving.facets import Facet, facets_of
from adde.serving.gallery import (
    SLACK,
    Gallery,
    Header,
    Item,
    ItemNotFoundError,
    UnavailableError,
    augmented,
    augmented_query,
    facts,
    require_once,
)

TIMEOUT = 10.0
"""Seconds a write may take, its tries anew included; then the caller is told."""

LOOK_TIMEOUT = 4.0
"""Seconds a search may take: it is someone's request, which has a deadline."""

PROBE_TIMEOUT = 1.0

SAMPLE = 1000
"""Items whose fields are looked at to say what fields there are."""

REFUSED = {6, 1100, 1101}
"""Codes of what is wrong with the request and not with Milvus: of Milvus Lite, and of Milvus."""

ID_LENGTH = 512
FIELDS = ["id", "vector", "norm", "record"]


class MilvusGallery:
    """A collection of Milvus as a gallery.

    Raises:
        UserError: Milvus is not installed or not reached, or the collection is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.header = Header.read(folder)
        self._uri, self._collection = self.header.extra["uri"], self.header.extra["collection"]
        attributes = len(self.header.schema.sizes)
        self._shape = (attributes, self.header.width)
        self._client = _connect(self._uri)
        with self._told():
            there = self._client.has_collection(self._collection)
        if not there:
            raise UserError(
                f"{self._uri}: expected collection {self._collection}, found none; build the "
                "gallery again"
            )
        with self._told():
            self._client.load_collection(self._collection, timeout=TIMEOUT)
        self._loaded = True

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Opens the gallery of a folder."""
        return cls(folder)

    @classmethod
    def creator(cls, uri: str) -> Callable[[Path, Header], Gallery]:
        """Makes new galleries at an address."""

        def create(folder: Path, header: Header) -> Gallery:
            # A name of its own: the gallery that is served meanwhile is not touched, nor removed.
            collection = f"adde_{header.bundle}_{uuid.uuid4().hex[:8]}"
            client = _connect(uri)
            with _told(uri):
                _create_collection(client, collection, header)
            folder.mkdir(parents=True)
            extra = {"uri": uri, "collection": collection}
            replace(header, engine="milvus", extra=extra).write(folder)
            return cls(folder)

        return create

    def __len__(self) -> int:
        return self._count(LOOK_TIMEOUT)

    def probe(self) -> int:
        """See `Gallery`."""
        with self._told():
            if not self._loaded:  # a server that was started anew may have to
                self._client.load_collection(self._collection, timeout=PROBE_TIMEOUT)
        items = self._count(PROBE_TIMEOUT)
        self._loaded = True
        return items

    def _count(self, seconds: float) -> int:
        with self._told():
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
    ) -> list[Item]:
        """See `Gallery`."""
        clauses = [
            filtering.to_milvus(filtering.parse(filters, self._names(filters), self.header.schema))
        ]
        if exclude is not None:
            clauses.append(f"id != {filtering.literal(exclude)}")
        with self._told():
            (hits,) = self._client.search(
                self._collection,
                data=[augmented_query(query, weights).tolist()],
                anns_field="vector",
                search_params={"metric_type": "IP"},
                limit=k + SLACK,
                filter=" and ".join(clause for clause in clauses if clause),
                output_fields=FIELDS,
                timeout=LOOK_TIMEOUT,
            )
        return [self._item(hit["entity"]) for hit in hits]

    def _names(self, filters: Mapping[str, Any]) -> list[str]:
        """Names that may be filtered by: the attributes, and fields that some item has."""
        names = [*self.header.schema.names]
        for name in filters:
            if name not in names:
                exists = f"exists facts[{filtering.literal(name)}]"
                with self._told():
                    found = self._client.query(
                        self._collection,
                        filter=exists,
                        output_fields=["id"],
                        limit=1,
                        timeout=LOOK_TIMEOUT,
                    )
                names += [name] if found else []
        return names

    def get(self, item_id: str) -> Item:
        """See `Gallery`."""
        chosen = _chosen([item_id])
        with self._told():
            found = self._client.query(
                self._collection, filter=chosen, output_fields=FIELDS, timeout=LOOK_TIMEOUT
            )
        if not found:
            raise ItemNotFoundError(f"no item {item_id!r} in the gallery")
        return self._item(found[0])

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
        )

    def facets(self) -> list[Facet]:
        """See `Gallery`; of some items, as Milvus cannot say what values a path of JSON has."""
        with self._told():
            found = self._client.query(
                self._collection,
                filter="",
                output_fields=["record"],
                limit=SAMPLE,
                timeout=LOOK_TIMEOUT,
            )
        return facets_of(entity["record"]["fields"] for entity in found)

    def upsert(self, items: Sequence[Item]) -> None:
        """See `Gallery`."""
        if not items:
            return
        require_once(items)
        _chosen([item.item_id for item in items])  # what could not be asked for is not stored
        vectors = augmented(np.stack([item.vector for item in items]).astype(np.float32))
        rows = [
            {
                "id": item.item_id,
                "vector": vector.tolist(),
                "norm": item.norm,
                "facts": facts(self.header.schema, item),
                "record": {
                    "labels": item.labels.tolist(),
                    "predicted": item.predicted.tolist(),
                    "fields": dict(item.fields),
                    "place": item.place,
                },
            }
            for item, vector in zip(items, vectors)
        ]
        with self._told():
            self._client.upsert(self._collection, rows, timeout=TIMEOUT)

    def delete(self, item_ids: Sequence[str]) -> int:
        """See `Gallery`."""
        if not item_ids:
            return 0
        chosen = _chosen(item_ids)
        with self._told():
            there = self._client.query(
                self._collection, filter=chosen, output_fields=["id"], timeout=TIMEOUT
            )
            if there:
                self._client.delete(self._collection, filter=chosen, timeout=TIMEOUT)
        return len(there)

    def finish(self) -> None:
        """Milvus builds its index by itself; this has it written."""
        with self._told():
            self._client.flush(self._collection, timeout=60)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    @contextmanager
    def _told(self) -> Generator[None]:
        """What Milvus or the way to it refuses, as one line."""
        try:
            with _told(self._uri):
                yield
        except UnavailableError:
            self._loaded = False
            raise


@contextmanager
def _told(uri: str) -> Generator[None]:
    milvus: Any = _pymilvus()
    refusals = (milvus.exceptions.ParamError, milvus.exceptions.DataNotMatchException)
    grpc: Any = importlib.import_module("grpc")
    reason: Any
    try:
        yield
    except grpc.RpcError as error:  # those that pymilvus does not try anew come as they are
        reason = error
        raise UnavailableError(f"{uri}: Milvus did not answer: {reason.details()}") from error
    except milvus.MilvusException as error:
        reason = error
        if reason.is_input_error or reason.code in REFUSED or isinstance(error, refusals):
            # Told to clients, who need not know where Milvus is.
            raise UserError(f"Milvus refuses what it was asked: {reason.message}") from error
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error
    except OSError as error:
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error


def _chosen(item_ids: Sequence[str]) -> str:
    """An expression for these items; pymilvus' own leaves quotes and backslashes as they are."""
    return f"id in [{', '.join(map(filtering.literal, item_ids))}]"


def drop(uri: str, collection: str) -> None:
    """Removes a collection, if it is there. Raises UnavailableError."""
    client = _connect(uri)
    try:
        with _told(uri):
            client.drop_collection(collection, timeout=TIMEOUT)
    finally:
        client.close()


def _create_collection(client: Any, name: str, header: Header) -> None:
    types = _pymilvus().DataType
    attributes = len(header.schema.sizes)
    schema = client.create_schema()
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=ID_LENGTH)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=attributes * header.width + attributes)
    schema.add_field("norm", types.FLOAT)
    schema.add_field("facts", types.JSON)
    schema.add_field("record", types.JSON)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
    # Strong: an item that was put in is found by the very next search.
    client.create_collection(
        name, schema=schema, index_params=index, consistency_level="Strong", timeout=60
    )


def _connect(uri: str) -> Any:
    with _told(uri):
        token = os.environ.get("MILVUS_TOKEN", "")
        # Left to itself gRPC waits up to two minutes before it tries again to connect.
        options = {"grpc.max_reconnect_backoff_ms": 1000, "grpc.min_reconnect_backoff_ms": 200}
        return _pymilvus().MilvusClient(
            uri, token=token, timeout=LOOK_TIMEOUT, grpc_options=options
        )


def _pymilvus() -> Any:
    try:
        return importlib.import_module("pymilvus")
    except ImportError:
        raise UserError(
            "engine milvus needs pymilvus, which is not installed: pip install 'adde[milvus]'"
        ) from None
