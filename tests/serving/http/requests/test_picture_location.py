"""Galleries whose pictures are not where they were built, as in a container."""

import json
import logging
import re
import shutil
from dataclasses import replace

import httpx
import pytest

from adde.errors import UserError
from adde.files import read_json, write_json
from adde.serving.gallery.opening import open_gallery
from adde.serving.http.logs import JsonLines

ITEM = "test-000000-005"
TEMPLATE = "https://cdn.example:8443/shop/{item_id}.jpg"


@pytest.fixture
def moved(tiny_gallery, tiny_shards, tmp_path):
    """The gallery and its shards, both moved and apart from one another."""
    gallery = shutil.copytree(tiny_gallery, tmp_path / "a" / "b" / "gallery")
    return gallery, shutil.copytree(tiny_shards, tmp_path / "pictures")


@pytest.fixture
def lines():
    """Return the server's log lines."""
    found, log = [], logging.getLogger("adde.serving.http")

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(JsonLines().format(record))

    log.addHandler(handler := Keep())
    level = log.level
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_missing_picture_folder_is_logged_once_without_item_ids(serve, moved, lines):
    gallery, _ = moved
    url = serve(gallery=gallery).url
    folder = (gallery / read_json(gallery / "gallery.json")["pictures"]).resolve()
    (told,) = [line for line in map(json.loads, lines) if line["level"] == "warning"]
    assert str(folder) in told["message"] and "--pictures" in told["message"]
    answer = httpx.get(f"{url}/v1/items/{ITEM}/picture")
    assert (answer.status_code, answer.json()["type"][-15:]) == (503, "picture-missing")
    text = "\n".join(lines)
    assert "cannot read a picture" in text and ITEM not in text


def test_a_folder_that_is_named(serve, moved, picture_of, lines):
    gallery, shards = moved
    url = serve(gallery=gallery, pictures=str(shards)).url
    answer = httpx.get(f"{url}/v1/items/{ITEM}/picture")
    assert answer.content == picture_of(ITEM)
    assert not [line for line in map(json.loads, lines) if line["level"] == "warning"]


def test_a_gallery_from_before_paths_were_relative(serve, moved, picture_of):
    gallery, shards = moved
    content = read_json(gallery / "gallery.json")
    write_json(gallery / "gallery.json", {**content, "pictures": str(shards)})
    url = serve(gallery=gallery).url
    assert httpx.get(f"{url}/v1/items/{ITEM}/picture").content == picture_of(ITEM)


def test_the_policy_allows_pictures_from_the_url(serve, bundle, moved):
    gallery, _ = moved
    opened = open_gallery(gallery, bundle, writable=True)
    opened.upsert([replace(opened.get(ITEM), item_id="a/b ?ü{item_id}", place=None)])
    opened.close()
    url = serve(gallery=gallery, pictures=TEMPLATE).url
    answer = httpx.get(f"{url}/v1/items/a%2Fb%20%3F%C3%BC%7Bitem_id%7D/picture")
    assert answer.status_code == 307
    expected = "https://cdn.example:8443/shop/a%2Fb%20%3F%C3%BC%7Bitem_id%7D.jpg"
    assert answer.headers["location"] == expected
    assert httpx.get(f"{url}/v1/items/none/picture").status_code == 404
    found = httpx.post(f"{url}/v1/search", json={"item": ITEM, "k": 1}).json()["answers"][0]
    assert found["item_id"].startswith("a/b") and found["has_picture"]
    policy = httpx.get(f"{url}/").headers["content-security-policy"]
    for source in ("img-src", "connect-src"):
        assert re.search(rf"{source} 'self' https://cdn\.example:8443[ ;]", policy)
    assert "cdn" not in httpx.get(f"{url}/docs").headers["content-security-policy"]
    assert "cdn" not in httpx.get(f"{url}/healthz").headers["content-security-policy"]


def test_a_folder_that_is_named_and_not_there_is_refused(serve, moved):
    with pytest.raises(UserError, match=r"--pictures: expected the folder .* found '/nowhere'"):
        serve(gallery=moved[0], pictures="/nowhere")
