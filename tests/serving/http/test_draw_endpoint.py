"""POST /v1/draw, held against the library."""

import base64

import httpx
import pytest

from adde.serving import Searcher
from adde.serving.gallery.opening import open_gallery
from adde.serving.http.backend import BackendConfig
from adde.serving.http.settings import Settings
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from tests.serving.http.conftest import InThread

ITEM = "test-000000-005"
EDITS = {"colour": "blue", "shape": "square"}


@pytest.fixture(scope="module")
def drawing_server(drawing, drawing_gallery, decoders):
    source = BackendConfig(drawing.path, drawing_gallery)
    server = InThread(source, Settings(drain_seconds=0), decoders)
    yield server
    server.close()


def test_the_server_draws(drawing, drawing_gallery, drawing_server, tiny_shards):
    sample = next(s for s in iterate(ShardIndex.read(tiny_shards), "test") if s.item_id == ITEM)
    gallery = open_gallery(drawing_gallery, drawing)
    searcher = Searcher(drawing, gallery)
    with httpx.Client(base_url=drawing_server.url, timeout=20) as client:
        asked = {"item": ITEM, "edits": EDITS}
        answer = client.post("/v1/draw", json=asked)
        assert answer.headers["content-type"] == "image/png"
        assert answer.content == searcher.draw(item=ITEM, edits=EDITS).png()
        image = base64.b64encode(sample.picture).decode()
        answer = client.post(
            "/v1/draw",
            json={"image": image, "edits": EDITS},
            headers={"accept": "application/json"},
        ).json()
        assert answer["synthetic"] is True and answer["wanted"]["colour"] == "blue"
        picture = searcher.draw(sample.picture, EDITS)
        assert base64.b64decode(answer["picture"]) == picture.png()
        assert client.get("/v1/schema").json()["draws"] is True
        assert client.post("/v1/draw", json={"edits": EDITS}).status_code == 422
        assert client.post("/v1/draw", json={"item": "nobody"}).status_code == 404
    gallery.close()


def test_a_server_without_a_decoder_refuses(server):
    with httpx.Client(base_url=server.url) as client:
        answer = client.post("/v1/draw", json={"item": ITEM})
        assert answer.status_code == 422
        assert "expected a bundle with a decoder" in answer.json()["detail"]
        assert client.get("/v1/schema").json()["draws"] is False
