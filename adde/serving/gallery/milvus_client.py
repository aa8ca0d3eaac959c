"""The connection to Milvus: clients, collections, and errors in the gallery's terms."""

import importlib
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from adde.errors import UserError
from adde.serving.gallery import filters as filtering
from adde.serving.gallery.base import Header, UnavailableError

TIMEOUT = 10.0
"""Seconds for a write including retries."""

SEARCH_TIMEOUT = 4.0
"""Seconds for a search, which serves a request with a deadline."""

INPUT_ERROR_CODES = {6, 1100, 1101}
"""Error codes caused by the request, of Milvus Lite (6) and Milvus."""

ID_LENGTH = 512


@contextmanager
def translate_errors(uri: str) -> Generator[None]:
    """Raise Milvus' errors as one-line UserError or UnavailableError."""
    milvus: Any = _pymilvus()
    refusals = (milvus.exceptions.ParamError, milvus.exceptions.DataNotMatchException)
    grpc: Any = importlib.import_module("grpc")
    reason: Any
    try:
        yield
    except grpc.RpcError as error:  # raised as is when pymilvus does not retry
        reason = error
        raise UnavailableError(f"{uri}: Milvus did not answer: {reason.details()}") from error
    except milvus.MilvusException as error:
        reason = error
        if reason.is_input_error or reason.code in INPUT_ERROR_CODES or isinstance(error, refusals):
            # Clients see this message; it must not reveal Milvus' address.
            raise UserError(f"Milvus rejected the request: {reason.message}") from error
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error
    except OSError as error:
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error


def id_filter(item_ids: Sequence[str]) -> str:
    """Return a filter for these ids; pymilvus' own does not escape quotes and backslashes."""
    return f"id in [{', '.join(map(filtering.literal, item_ids))}]"


def drop(uri: str, collection: str) -> None:
    """Drop a collection, if it exists. Raises UnavailableError."""
    client = connect(uri)
    try:
        with translate_errors(uri):
            client.drop_collection(collection, timeout=TIMEOUT)
    finally:
        client.close()


def create_collection(client: Any, name: str, header: Header) -> None:
    """Create a collection with exact (FLAT) indexes."""
    types = _pymilvus().DataType
    attributes = len(header.schema.sizes)
    schema = client.create_schema()
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=ID_LENGTH)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=attributes * header.width + attributes)
    schema.add_field("norm", types.FLOAT)
    schema.add_field("facts", types.JSON)
    schema.add_field("record", types.JSON)
    if header.calibrated:
        numbers = header.schema.num_values + attributes
        schema.add_field("beliefs", types.FLOAT_VECTOR, dim=numbers)
    index = client.prepare_index_params()
    # FLAT scans every vector. Graph indexes such as AUTOINDEX assume one weighting of attributes;
    # with weight on a single one their recall falls to 0.6 to 0.8.
    for field in ["vector", "beliefs"] if header.calibrated else ["vector"]:
        index.add_index(field, index_type="FLAT", metric_type="IP")
    # Builds count what they stored, which needs strong consistency; searches ask for less.
    client.create_collection(
        name, schema=schema, index_params=index, consistency_level="Strong", timeout=60
    )


def connect(uri: str) -> Any:
    """Connect a client. Raises UserError or UnavailableError."""
    with translate_errors(uri):
        token = os.environ.get("MILVUS_TOKEN", "")
        # By default gRPC waits up to two minutes before reconnecting.
        options = {"grpc.max_reconnect_backoff_ms": 1000, "grpc.min_reconnect_backoff_ms": 200}
        return _pymilvus().MilvusClient(
            uri, token=token, timeout=SEARCH_TIMEOUT, grpc_options=options
        )


def _pymilvus() -> Any:
    try:
        return importlib.import_module("pymilvus")
    except ImportError:
        raise UserError(
            "engine milvus needs pymilvus, which is not installed: pip install 'adde[milvus]'"
        ) from None
