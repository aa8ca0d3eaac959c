"""Requests that schemathesis generates from the OpenAPI document, well-formed and malformed."""

import contextlib
from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

ITEM = "test-000000-001"


def test_the_document_is_there_and_names_every_endpoint(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {
        "/v1/embed",
        "/v1/search",
        "/v1/complete",
        "/v1/draw",
        "/v1/schema",
        "/v1/items",
        "/v1/items/{item_id}",
        "/v1/items/{item_id}/picture",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                kinds = set(answer.get("content", {}))
                assert status == "200" or kinds == {"application/problem+json"}


def ask_all(url, examples):
    """Let schemathesis call every endpoint; return the number of requests by status."""
    config = schemathesis.Config.from_dict({"generation": {"mode": "all"}})
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
    asked = Counter()
    for operation in document.get_all_operations():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            asked += ask_one(operation.ok(), mode, examples)
    print(f"{asked.total():,} requests, {refused(asked):,} of them refused: {dict(asked)}")
    return asked


def refused(asked):
    """How many of the requests of `ask_all` were rejected as malformed."""
    return sum(count for status, count in asked.items() if 400 <= status < 500)


def ask_one(operation, mode, examples):
    asked = Counter()

    @settings(
        max_examples=examples * (4 if operation.method == "post" else 1),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        positive, body = mode == GenerationMode.POSITIVE, case.body
        if positive and isinstance(body, dict) and body.get("item"):
            case.body = {"item": ITEM, "k": body.get("k", 1)}  # so that some are answered
        # A well-formed request may still name an unknown attribute, item or picture.
        left_out = [positive_data_acceptance]
        if case.media_type == "multipart/form-data":
            left_out.append(negative_data_rejection)
        asked[case.call_and_validate(excluded_checks=left_out).status_code] += 1

    # A request without parameters and body cannot be malformed.
    with contextlib.suppress(Unsatisfiable):
        ask()
    return asked


def test_generated_requests(server):
    asked = ask_all(server.url, 16)
    assert asked[200] >= 8 and refused(asked) >= 250
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.mark.slow
def test_ten_thousand_malformed_requests(serve):
    server = serve()
    assert refused(ask_all(server.url, 800)) >= 10_000
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    assert server.service._admission._inside == server.service._admission.pending_pictures == 0
