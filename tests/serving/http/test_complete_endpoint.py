"""POST /v1/complete, held against the library."""

import json

import httpx
import pytest

from adde.serving import Searcher
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.http.backend import BackendConfig
from adde.serving.http.settings import Settings
from adde.serving.onnx.session import Session
from tests.serving.http.conftest import InThread


@pytest.fixture(scope="module")
def worn(with_head):
    """The calibrated bundle with an outfit head of shapes."""
    return with_head("shape")


@pytest.fixture(scope="module")
def served(worn, tiny_shards, decoders, tmp_path_factory):
    """A server, and the library beside it."""
    session, folder = Session(worn), tmp_path_factory.mktemp("gallery") / "g"
    build_gallery(worn, session, tiny_shards, folder)
    server = InThread(BackendConfig(worn.path, folder), Settings(drain_seconds=0), decoders)
    gallery = open_gallery(folder, worn)
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client, Searcher(worn, gallery, session=session)
    gallery.close()
    server.close()


OUTFITS = ["test-000000-005", "test-000000-001"]


def test_it_answers_as_the_library_does(served):
    client, searcher = served
    asked = {"items": OUTFITS, "category": "square", "k": 6, "filters": {"border": "plain"}}
    answer = client.post("/v1/complete", json=asked)
    assert answer.status_code == 200, answer.text
    found = searcher.complete(OUTFITS, "square", 6, {"border": "plain"})
    assert [(a["item_id"], a["score"]) for a in answer.json()["answers"]] == [
        (f.item_id, f.score) for f in found
    ]
    assert answer.json()["bundle"] == searcher.bundle.hash
    assert client.get("/v1/schema").json()["outfits"] == "shape"


def test_a_picture_joins_the_outfit(served, picture_of):
    client, searcher = served
    content = picture_of(OUTFITS[0])
    answer = client.post(
        "/v1/complete",
        files={"image": content},
        data={"request": json.dumps({"items": OUTFITS[1:], "category": "disc", "k": 3})},
    )
    found = searcher.complete(OUTFITS[1:], "disc", 3, images=[content])
    assert [a["item_id"] for a in answer.json()["answers"]] == [f.item_id for f in found]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"items": []}, 422, "expected 1 to 50 items"),
        ({"items": OUTFITS[:1] * 2}, 422, "each item once"),
        ({"items": ["nobody"]}, 404, "nobody"),
        ({"items": OUTFITS, "category": "dsic"}, 422, "dsic"),
        ({"items": OUTFITS, "filters": {"shape": "disc"}}, 422, "expected none of 'shape'"),
        ({"items": [str(n) for n in range(51)]}, 422, "at most 50"),
    ],
)
def test_what_cannot_be_completed_is_refused(served, asked, status, message):
    client, _ = served
    answer = client.post("/v1/complete", json={"category": "disc", **asked})
    assert answer.status_code == status
    assert message in answer.text


def test_a_bundle_without_a_head_says_so(client):
    answer = client.post("/v1/complete", json={"items": OUTFITS, "category": "disc"})
    assert answer.status_code == 422
    assert "expected a bundle with an outfit head" in answer.json()["detail"]
    assert client.get("/v1/schema").json()["outfits"] is None
