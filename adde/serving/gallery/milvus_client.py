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
"""Seconds a write may take, its tries anew included; then the caller is told."""

SEARCH_TIMEOUT = 4.0
"""Seconds a search may take: it is someone's request, which has a deadline."""

INPUT_ERROR_CODES = {6, 1100, 1101}
"""Codes of what is wrong with the request and not with Milvus: of Milvus Lite, and of Milvus."""

ID_LENGTH, TEXT_LENGTH = 512, 65_535


@contextmanager
def translate_errors(uri: str) -> Generator[None]:
    """Raise Milvus' errors as one-line UserError or UnavailableError."""
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
        if reason.is_input_error or reason.code in INPUT_ERROR_CODES or isinstance(error, refusals):
            # Told to clients, who need not know where Milvus is.
            raise UserError(f"Milvus refuses what it was asked: {reason.message}") from error
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error
    except OSError as error:
        raise UnavailableError(f"{uri}: Milvus did not answer as expected: {error}") from error


def id_filter(item_ids: Sequence[str]) -> str:
    """An expression for these items; pymilvus' own leaves quotes and backslashes as they are."""
    return f"id in [{', '.join(map(filtering.literal, item_ids))}]"


def drop(uri: str, collection: str) -> None:
    """Removes a collection, if it is there. Raises UnavailableError."""
    client = connect(uri)
    try:
        with translate_errors(uri):
            client.drop_collection(collection, timeout=TIMEOUT)
    finally:
        client.close()


def create_collection(client: Any, name: str, header: Header) -> None:
    """Create a collection with an exact (FLAT) index."""
    types = _pymilvus().DataType
    attributes = len(header.schema.sizes)
    schema = client.create_schema()
    schema.add_field("id", types.VARCHAR, is_primary=True, max_length=ID_LENGTH)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=attributes * header.width + attributes)
    schema.add_field("norm", types.FLOAT)
    schema.add_field("facts", types.JSON)
    schema.add_field("record", types.JSON)
    if header.calibrated:
        schema.add_field("beliefs", types.VARCHAR, max_length=TEXT_LENGTH)
    index = client.prepare_index_params()
    # Every vector is looked at: a graph, such as AUTOINDEX takes, is of one way of weighing
    # attributes, and where one alone counts it finds 0.6 to 0.8 of what there is.
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    # Strong: builds count what they stored. Searches ask for less.
    client.create_collection(
        name, schema=schema, index_params=index, consistency_level="Strong", timeout=60
    )


def connect(uri: str) -> Any:
    """Connect a client. Raises UserError or UnavailableError."""
    with translate_errors(uri):
        token = os.environ.get("MILVUS_TOKEN", "")
        # Left to itself gRPC waits up to two minutes before it tries again to connect.
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
