"""Every endpoint of a tiny bundle, compared with the library."""

import base64
import json
import shutil
import time
from contextlib import closing
from dataclasses import asdict, replace

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from adde.serving import Request
from adde.serving.gallery.opening import open_gallery
from adde.serving.http.request_models import SearchBody

ITEM = "test-000000-005"
ASKED = {"edits": {"colour": "red"}, "k": 5, "weights": {"border": 3.0}}


def check(answer, result):
    """A response of /v1/search equals the library's result bitwise."""
    assert answer["wanted"] == dict(result.wanted)
    assert answer["seen"] == {name: vars(seen) for name, seen in result.seen.items()}
    assert [a["item_id"] for a in answer["answers"]] == [a.item_id for a in result]
    for found, expected in zip(answer["answers"], result, strict=True):
        assert found["distance"] == expected.distance
        assert found["score"] == expected.score
        assert found["labels"] == expected.labels
        for name, match in expected.matches.items():
            assert found["matches"][name] == {**asdict(match), "good": match.good}


def test_searching_by_upload_equals_the_library(client, searcher, picture_of):
    content = picture_of(ITEM)
    answer = client.post(
        "/v1/search", files={"image": content}, data={"request": json.dumps(ASKED)}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    check(answer.json(), searcher.search(content, **ASKED))
    assert answer.json()["bundle"] == searcher.bundle.hash


def test_base64_and_upload_give_the_same_answer(client, picture_of):
    content = picture_of(ITEM)
    upload = client.post("/v1/search", files={"image": content}).json()
    encoded = base64.b64encode(content).decode()
    assert client.post("/v1/search", json={"image": encoded}).json() == upload
    for said in (f"data:image/jpeg;base64,{encoded}", base64.encodebytes(content).decode()):
        assert client.post("/v1/search", json={"image": said}).json() == upload
    within = client.post("/v1/search", files={"request": (None, json.dumps({"image": encoded}))})
    assert within.json() == upload


@pytest.mark.parametrize(
    "asked",
    [
        {},
        ASKED,
        {"like": ["shape"], "k": 96},
        {"filters": {"colour": ["red", "blue"], "border": "white"}},
    ],
)
def test_searching_by_item_equals_the_library(client, searcher, asked):
    answer = client.post("/v1/search", json={"item": ITEM, **asked})
    assert answer.status_code == 200
    check(answer.json(), searcher.search(item=ITEM, **asked))
    assert ITEM not in [a["item_id"] for a in answer.json()["answers"]]


def test_an_embedding_equals_the_librarys(client, searcher, picture_of):
    content = picture_of(ITEM)
    answer = client.post("/v1/embed", files={"image": content}).json()
    (start,) = searcher.embed([searcher.picture(content)])
    assert np.array_equal(np.array(answer["embedding"], np.float32), start.embedding)
    assert answer["seen"] == {name: vars(seen) for name, seen in start.seen.items()}


def test_the_schema_endpoint(client, bundle):
    content = client.get("/v1/schema").json()
    attributes = bundle.schema.to_json()["attributes"]
    assert content["attributes"] == [{**each, "multiple": False} for each in attributes]
    assert content["fields"] == []
    assert content["items"] == 96
    assert content["bundle"] == bundle.hash


def test_an_item_and_its_picture(client, searcher, picture_of):
    item = client.get(f"/v1/items/{ITEM}").json()
    stored = searcher.gallery.get(ITEM)
    assert item["labels"] == searcher.schema.decode(stored.labels)
    assert item["seen"] == searcher.schema.decode(stored.predicted)
    assert item["has_picture"]
    picture = client.get(f"/v1/items/{ITEM}/picture")
    assert picture.content == picture_of(ITEM)
    assert picture.headers["content-type"] == "image/png"


def test_new_items_appear_in_the_next_answer(serve, bundle, tiny_gallery, tmp_path):
    folder = shutil.copytree(tiny_gallery, tmp_path / "g")
    server = serve(gallery=folder)
    with (
        httpx.Client(base_url=server.url, timeout=20) as client,
        closing(open_gallery(folder, bundle, writable=True)) as gallery,
    ):
        found = gallery.get(ITEM)
        gallery.upsert([replace(found, item_id="new"), replace(found, fields={"price": 3})])
        assert client.get("/v1/items/new").json()["item_id"] == "new"
        asked = {"item": "new", "k": 1}
        answer = client.post("/v1/search", json={**asked, "filters": {"price": 3}}).json()
        assert [answer["item_id"] for answer in answer["answers"]] == [ITEM]
        gallery.delete([ITEM])
        answer = client.post("/v1/search", json={**asked, "k": 96}).json()
        assert ITEM not in [answer["item_id"] for answer in answer["answers"]]
        assert client.get(f"/v1/items/{ITEM}").status_code == 404
        gallery.delete(["new"])
        end = time.monotonic() + 30
        while client.get("/v1/schema").json()["items"] != 95:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_another_seed_draws_other_items(client, searcher):
    first, again, other = (
        [item["item_id"] for item in client.get("/v1/items", params=asked).json()["items"]]
        for asked in ({"count": 7}, {"count": 7}, {"count": 7, "seed": 1})
    )
    assert first == again != other
    assert len(set(first)) == 7
    assert all(searcher.gallery.get(item_id) for item_id in first)


def test_items_are_found_by_words_and_filters(client, searcher):
    def found(**asked):
        items = client.get("/v1/items", params={"count": 100, **asked}).json()["items"]
        return {item["item_id"] for item in items}

    everything = searcher.gallery.browse("", {}, 100)
    red = {item.item_id for item in everything if item.labels[0] == 0}
    assert len(everything) == 96 and red
    assert found(query="RED") == found(filters='{"colour": ["red"]}') == red
    one = min(red)
    assert found(query=f"red {one}") == {one}
    assert len(found(query="red", count=1, offset=len(red))) == 0
    for filters in ("{", '{"colour": {}}', "[]", '{"colour": [[]]}'):
        answer = client.get("/v1/items", params={"filters": filters})
        assert (answer.status_code, answer.json()["title"]) == (422, "Unprocessable Entity")
    answer = client.get("/v1/items", params={"filters": '{"color": "red"}'})
    assert "no item has 'color'; did you mean" in answer.json()["detail"]


def test_health_names_the_sessions_own_providers(client, bundle):
    health = client.get("/healthz").json()
    assert health["providers"] == ["CPUExecutionProvider"]
    assert (health["bundle"], health["items"], health["swap"]) == (bundle.hash, 96, "none")
    assert client.get("/readyz").json() == {"ready": True}


def test_metrics_count_what_was_done(serve, picture_of):
    url = serve().url
    for _ in range(3):
        assert httpx.post(f"{url}/v1/search", files={"image": picture_of(ITEM)}).status_code == 200
    httpx.get(f"{url}/no/such/page")
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    for stage in ("read", "decode", "batch", "search"):
        assert found[f'adde_stage_seconds_count{{stage="{stage}"}}'] == "3.0"
    labels = 'method="POST",route="/v1/search",status="200"'
    assert found[f"adde_request_seconds_count{{{labels}}}"] == "3.0"
    assert found["adde_batch_size_sum"] == "3.0"
    assert found["adde_queue_depth"] == found["adde_requests_inside"] == "0.0"
    assert found["adde_gallery_items"] == "96.0"
    assert any('provider="CPUExecutionProvider"' in name for name in found)
    assert float(found["process_resident_memory_bytes"]) > 1e6
    # Values made up by clients never become metric labels.
    assert "/no/such/page" not in str(found)


@pytest.mark.parametrize(
    ("asked", "status", "text"),
    [
        ({}, 422, "expected one of image and item"),
        ({"item": ITEM, "edits": {"color": "red"}}, 422, "unknown attribute 'color'; did you mean"),
        ({"item": ITEM, "edits": {"colour": "rad"}}, 422, "unknown value 'rad'; did you mean"),
        ({"item": ITEM, "k": 0}, 422, "k: Input should be greater"),
        ({"item": ITEM, "k": "3"}, 422, "k: Input should be a valid integer"),
        ({"item": ITEM, "weights": {"colour": -1}}, 422, "weights.colour"),
        ({"item": ITEM, "weights": {"colour": 0, "shape": 0, "border": 0}}, 422, "at least one"),
        ({"item": ITEM, "like": ["size"]}, 422, "like: unknown attribute 'size'"),
        ({"item": ITEM, "filters": {"price": 3}}, 422, "no item has 'price'"),
        ({"item": ITEM, "filters": {"colour": {"max": "red"}}}, 422, "filters"),
        ({"item": ITEM, "filters": {"colour": {}}}, 422, "filters"),
        ({"item": ITEM, "filters": {"colour": {"min": 0, "max": 2.0**70}}}, 422, "found bounds"),
        ({"item": ITEM, "filters": {"colour": ["red", "bleu"]}}, 422, "did you mean 'blue'?"),
        ({"item": ITEM, "colour": "red"}, 422, "Extra inputs are not permitted"),
        ({"item": ITEM, "filters": {str(at): 1 for at in range(51)}}, 422, "at most 50, found 51"),
        ({"item": "test-000000-05"}, 404, "did you mean"),
        ({"image": "%%"}, 422, "image: expected a picture file in base64, or a data URL of it"),
        ({"image": "data:image/svg+xml,%3Csvg/%3E"}, 422, "or a data URL of it"),
        ({"image": "AAAA"}, 415, "expected JPEG, PNG or WebP"),
        ({"image": ""}, 415, "expected JPEG, PNG or WebP"),
    ],
)
def test_unanswerable_requests_get_a_problem_with_the_reason(client, asked, status, text):
    answer = client.post("/v1/search", json=asked)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert text in problem["detail"]
    assert problem["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"


@pytest.mark.parametrize(
    ("content", "media", "status"),
    [
        (b"{", "application/json", 422),
        (b'{"item": "\xff"}', "application/json", 422),
        (b"item=x", "application/x-www-form-urlencoded", 415),
        (b"", None, 415),
        (b"x", "multipart/form-data", 400),
        (b"--b\r\nnonsense", "multipart/form-data; boundary=b", 422),
        (b'--b\r\nContent-Disposition: form-data; name="item"\r\n\r\nx\r\n--b--\r\n',
         "multipart/form-data; boundary=b", 422),
        (b'{"item": 1e999}', "application/json", 422),
        (b"[" * 100_000, "application/json", 422),
    ],
)  # fmt: skip
def test_malformed_bodies_are_rejected(client, content, media, status):
    headers = {} if media is None else {"content-type": media}
    answer = client.post("/v1/search", content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("charset", ["punycode", '"PUNYCODE"', "unicode_escape", "utf-16"])
def test_a_form_is_never_decoded_by_a_codec_the_client_chooses(client, charset):
    content = b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}\r\n--b--\r\n'
    for given, status in ((charset, 415), ("UTF-8", 422)):
        media = f"multipart/form-data; boundary=b; charset={given}"
        answer = client.post("/v1/search", content=content, headers={"content-type": media})
        assert (answer.status_code, answer.headers["content-type"]) == (
            status,
            "application/problem+json",
        )


WRONG = {
    "unknown": lambda parts: b"{%s}" % parts,
    "filters": lambda parts: b'{"filters": {%s}}' % parts,
    "bounds": lambda parts: b'{"filters": {"colour": {%s}}}' % parts,
    "edits": lambda parts: b'{"edits": {%s}}' % parts,
    "weights": lambda parts: b'{"weights": {%s}}' % parts,
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_body_with_a_million_errors_is_rejected_without_listing_them(client, kind):
    for count in (500_000, 90_000):  # by its commas, and by the length of its mapping
        body = WRONG[kind](b",".join(b'"%x":null' % at for at in range(count)))
        answer = client.post(
            "/v1/search", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422
        assert len(answer.json()["detail"]) < 1000


def test_a_condition_of_many_wrong_values_has_few_faults():
    filters = {f"f{at}": [None] * 1000 for at in range(50)}
    with pytest.raises(ValidationError) as caught:
        SearchBody.model_validate_json(json.dumps({"filters": filters}))
    assert caught.value.error_count() < 1000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/items/none", 404),
        ("GET", "/v1/items/none/picture", 404),
        ("GET", "/v1/items?count=0", 422),
        ("GET", "/v1/search", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/items/%ff%00", 404),
    ],
)
def test_other_problems_are_problems_too(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_unexpected_errors_reveal_nothing(serve, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret of the server")

    url = serve().url
    monkeypatch.setattr("adde.serving.http.service._search_json", broken)
    answer = httpx.post(f"{url}/v1/search", json={"item": ITEM})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["content-security-policy"]
    for _ in range(100):  # the response is sent before the log is written
        time.sleep(0.01 if "secret" not in caplog.text else 0)
    assert "secret" in caplog.text
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_search_batch_equals_single_searches(searcher, picture_of):
    """The oracle of this file and of the load tests: single and batched searches agree."""
    contents = [picture_of(f"test-000000-{n:03d}") for n in range(5)]
    together = searcher.search_batch([Request(image=c, edits={"colour": "red"}) for c in contents])
    assert together == [searcher.search(c, {"colour": "red"}) for c in contents]
