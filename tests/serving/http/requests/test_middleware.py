"""Headers, size limits, and the log."""

import json
import logging
import socket

import httpx
import pytest

from adde.errors import UserError
from adde.serving.http.logs import JsonLines
from adde.serving.http.settings import Settings

ITEM = "test-000000-001"


@pytest.mark.parametrize("path", ["/healthz", "/v1/schema", "/nothing", "/openapi.json"])
def test_every_answer_carries_the_headers_and_none_opens_cors(client, path):
    headers = client.get(path, headers={"origin": "https://elsewhere.example"}).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert not [name for name in headers if name.startswith("access-control")]
    assert "server" not in headers


def test_a_preflight_of_another_origin_is_refused(client):
    asked = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    assert client.options("/v1/search", headers=asked).status_code == 405


def test_a_body_with_too_large_a_length_is_rejected_before_it_is_sent(serve):
    url = serve(max_bytes=1000).url
    with socket.create_connection(url[7:].split(":")) as raw:
        # Not one byte of the body follows.
        raw.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_body_of_unknown_length_is_rejected_when_it_exceeds_the_limit(serve):
    server = serve(max_bytes=100_000)
    read = []

    def pieces():
        for _ in range(50):
            read.append(1)
            yield b"x" * 10_000

    media = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/embed", content=pieces(), headers=media)
    assert answer.status_code == 413
    assert "at most 100,000 bytes" in answer.json()["detail"]
    assert server.service._admission._inside == 0


def test_the_log_is_json_lines_without_pictures_keys_or_names(serve, picture_of, tmp_path):
    from adde.serving.http.requests.keys import Keys

    key = "secret-secret-secret"
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(JsonLines().format(record))

    handler, log = Keep(), logging.getLogger("adde.serving.http")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        url = serve(keys=Keys(text=f"shop: {key}")).url
        headers = {"authorization": f"Bearer {key}"}
        httpx.post(f"{url}/v1/search", files={"image": picture_of(ITEM)}, headers=headers)
        httpx.get(f"{url}/v1/items/{ITEM}", headers=headers)
        httpx.get(f"{url}/v1/items/{ITEM}", headers={"authorization": "Bearer guess"})
        httpx.get(f"{url}/healthz")
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    requests = [r for r in map(json.loads, lines) if r["message"] == "request"]
    routes = [(r["route"], r["status"], r["key"]) for r in requests]
    assert routes == [
        ("/v1/search", 200, "shop"),
        ("/v1/items/{item_id:path}", 200, "shop"),
        ("none", 401, None),
    ]
    assert all(r["ms"] > 0 and r["bytes_out"] > 0 and r["request"] for r in requests)
    text = "\n".join(lines)
    assert key not in text and "guess" not in text and ITEM not in text and "PNG" not in text


@pytest.mark.parametrize("changed", [{"queue": 0}, {"max_batch": 65}, {"decode_seconds": 0}])
def test_settings_out_of_range_are_reported(changed):
    with pytest.raises(UserError, match=r"--[a-z-]+: expected .* to .*, found"):
        Settings(**changed)
