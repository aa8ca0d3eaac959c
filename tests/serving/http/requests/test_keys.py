"""API keys and rate limits."""

import asyncio
import os
import time

import httpx
import pytest

from adde.errors import UserError
from adde.serving.http.app import create_app
from adde.serving.http.backend import BackendConfig
from adde.serving.http.requests.hosts import is_loopback
from adde.serving.http.requests.keys import Keys, RateLimiter, parse
from adde.serving.http.server import find_keys
from adde.serving.http.service import Service
from adde.serving.http.settings import Settings

OLD, NEW = "k" * 15 + "1", "k" * 15 + "2"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# two shops\nfirst: {OLD}\n\nsecond: {NEW}\n")
    return path


def test_each_key_has_its_name(key_file):
    keys = Keys(key_file)
    assert keys.name_of(OLD) == "first"
    assert keys.name_of(NEW) == "second"
    for wrong in ("", OLD[:-1], OLD + " ", OLD.upper(), "ünïcode", "first"):
        assert keys.name_of(wrong) is None


def test_a_changed_file_is_read_again_and_a_bad_one_changes_nothing(key_file, caplog):
    keys = Keys(key_file)
    third = "z" * 20

    def rewrite(text):
        key_file.write_text(text)
        os.utime(key_file, ns=(time.time_ns(), key_file.stat().st_mtime_ns + 1))

    rewrite(f"third: {third}\n")
    assert (keys.name_of(third), keys.name_of(OLD)) == ("third", None)
    rewrite("no key at all\n")
    assert keys.name_of(third) == "third"
    assert "line 1: expected `name: key`" in caplog.text
    key_file.unlink()
    assert keys.name_of(third) == "third"
    assert third not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("only-a-key-of-some-length", "line 1: expected `name: key`"),
        ("a: short", "line 1: expected a key of at least 16 characters, found 5"),
        (f"a: {OLD}\na: {NEW}", "line 2: the name 'a' appears twice"),
    ],
)
def test_malformed_keys_are_reported_without_showing_them(text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(text, "keys.txt")
    assert OLD not in str(raised.value)
    assert "length" not in str(raised.value)


REMARK = "name: key, of at least 16 characters; openssl rand -hex 24"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_any_editor_has_the_same_keys(tmp_path, encoding, end):
    path = tmp_path / "keys.txt"
    path.write_bytes(f"# {REMARK}{end}first: {OLD}{end}".encode(encoding))
    keys = Keys(path)
    assert (len(keys), keys.name_of(OLD)) == (1, "first")
    # A secret made from such a file arrives through the environment.
    assert parse(f"\ufeff# {REMARK}{end}first: {OLD}", "X").keys() == {"first"}


@pytest.mark.parametrize("before", ["\u200b# ", "// ", "; ", "", "\ufeff\ufeff# "])
def test_a_sentence_is_not_a_key(before):
    with pytest.raises(UserError, match=r"line 2: expected `name: key`, .*a comment begins with #"):
        parse(f"first: {OLD}\n{before}{REMARK}", "keys.txt")


@pytest.mark.parametrize("gap", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_comment_ends_where_its_line_does(gap):
    assert parse(f"first: {OLD}\n# made by{gap}no-name:{NEW}", "keys.txt").keys() == {"first"}


def test_a_key_is_required_off_loopback(monkeypatch, key_file):
    monkeypatch.delenv("ADDE_API_KEYS", raising=False)
    with pytest.raises(UserError, match="expected API keys, found none; give --key-file"):
        find_keys("0.0.0.0", None, None)
    with pytest.raises(UserError, match="expected API keys"):
        find_keys("127.0.0.1", None, True)
    assert find_keys("127.0.0.1", None, None) is None
    assert find_keys("0.0.0.0", None, False) is None
    assert len(find_keys("0.0.0.0", key_file, None)) == 2
    monkeypatch.setenv("ADDE_API_KEYS", f"x: {OLD}")
    assert find_keys("127.0.0.1", None, None).name_of(OLD) == "x"
    hosts = ["127.0.0.1", "127.9.9.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "shop"]
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4


def test_a_bucket_holds_a_burst_and_fills_at_its_rate():
    now = [0.0]
    buckets = RateLimiter(rate=2, burst=3, now=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0  # keys have separate buckets
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [0, 0.5]
    now[0] = 100.0  # at most one burst accumulates
    assert [buckets.take("a") > 0 for _ in range(4)] == [False, False, False, True]
    assert RateLimiter(rate=0, burst=1).take("a") == 0


def test_what_needs_a_key_and_what_does_not(serve, key_file):
    url = serve(keys=Keys(key_file)).url
    for path in ("/v1/schema", "/v1/items", "/v1/items/x/picture", "/metrics", "/v1/nothing"):
        for headers in ({}, bearer(OLD[:-1]), {"authorization": OLD}, {"x-api-key": OLD}):
            answer = httpx.get(url + path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["content-type"] == "application/problem+json"
    assert httpx.post(url + "/v1/search", content=b"x" * 100).status_code == 401
    assert httpx.get(url + "/v1/schema", headers=bearer(OLD)).status_code == 200
    assert httpx.get(url + "/metrics", headers=bearer(NEW)).status_code == 200
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert httpx.get(url + path).status_code == 200
    assert "security" in httpx.get(url + "/openapi.json").json()["paths"]["/v1/search"]["post"]


def test_a_key_over_its_rate_gets_retry_after(serve, key_file):
    url = serve(keys=Keys(key_file), rate=0.5, burst=2).url
    statuses = [httpx.get(url + "/v1/schema", headers=bearer(OLD)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    answer = httpx.get(url + "/v1/schema", headers=bearer(OLD))
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["type"] == "urn:adde:problem:rate"
    assert httpx.get(url + "/v1/schema", headers=bearer(NEW)).status_code == 200
    assert httpx.get(url + "/healthz").status_code == 200


def answers_of(app, prefix, paths, headers):
    """A response of `app` behind something that strips `prefix`."""

    async def ask():
        transport = httpx.ASGITransport(app, root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return {path: (await client.get(prefix + path, headers=headers)) for path in paths}

    return ask()


def test_under_a_prefix_keys_and_rates_are_what_they_are_without(
    tiny_bundle, tiny_gallery, decoders
):
    """As under Ray Serve's route_prefix, or mounted in another app."""
    guarded = ["/v1/schema", "/v1/items", "/v1/items/test-000000-003", "/metrics", "/nothing"]
    free = ["/", "/page/main.js", "/docs", "/openapi.json", "/healthz", "/readyz"]
    source, keys = BackendConfig(tiny_bundle, tiny_gallery), Keys(text=f"shop: {OLD}")

    async def check():
        settings = Settings(rate=0.01, burst=len(guarded) - 1)
        service = Service(source, source.open(), decoders, settings, keys)
        await service.start()
        app = create_app(service)
        for prefix in ("", "/adde"):
            refused = await answers_of(app, prefix, guarded, {})
            assert {path: a.status_code for path, a in refused.items()} == dict.fromkeys(
                guarded, 401
            )
            answered = await answers_of(app, prefix, free, {})
            assert {path: a.status_code for path, a in answered.items()} == dict.fromkeys(free, 200)
        answered = await answers_of(app, "/adde", guarded, bearer(OLD))
        assert [a.status_code for a in answered.values()] == [200, 200, 200, 200, 404]
        again = await answers_of(app, "/adde", ["/v1/schema"], bearer(OLD))
        assert again["/v1/schema"].status_code == 429
        await service.close()

    asyncio.run(check())


def test_the_description_asks_for_keys_where_the_server_does(serve):
    paths = httpx.get(f"{serve(keys=Keys(text=f'shop: {OLD}')).url}/openapi.json").json()["paths"]
    asked = {path for path, operations in paths.items() if "security" in str(operations)}
    assert set(paths) - asked == {"/healthz", "/readyz"}
