"""Clients that hold connections without requests, or exceed the limits."""

import contextlib
import http.client
import json
import socket
import threading
import time

import httpx
import pytest

from adde.serving.http.metrics import Metrics
from adde.serving.http.requests import connections
from adde.serving.http.requests.keys import Keys

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
END = b"\r\n\r\n"
KEYS = Keys(text="".join(f"{name}: {name}-key-of-some-length\n" for name in ("one", "two", "six")))


@contextlib.contextmanager
def connected(server, count=1):
    with contextlib.ExitStack() as opened:
        address = server.url[7:].split(":")
        clients = [
            opened.enter_context(socket.create_connection(address, timeout=30))
            for _ in range(count)
        ]
        yield clients[0] if count == 1 else clients


def status(raw):
    """Read exactly one response."""
    answer = http.client.HTTPResponse(raw)
    answer.begin()
    answer.read()
    return answer.status


def everything(raw):
    """Read until the server closes; fail if it does not."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := raw.recv(1 << 16):
            found += piece
    return found


def pour(raw, piece, count):
    """Send a piece repeatedly, until the server stops reading; return the bytes sent."""
    sent = 0
    with contextlib.suppress(ConnectionError, TimeoutError):
        for _ in range(count):
            raw.sendall(piece)
            sent += len(piece)
    return sent


def wait_until(what):
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


ENDLESS = {
    "value": (HEAD + b"A: ", b"a" * 10_000),
    "name": (HEAD, b"a" * 10_000),
    "fields": (HEAD, b"a: b\r\n" * 1000),
    "target": (b"GET /", b"a" * 10_000),
    "empty lines": (b"", b"\r\n" * 5000),
    "trailers": (
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        b"a: b\r\n" * 1000,
    ),
    "chunk extension": (
        b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n2;",
        b"a" * 10_000,
    ),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_without_end_is_closed_and_nobody_waits_for_it(serve, kind):
    server = serve()
    start, piece = ENDLESS[kind]
    with connected(server) as raw:
        raw.sendall(start)
        assert pour(raw, piece, 5000) < 5000 * len(piece)
        assert everything(raw)[:12] in (b"", b"HTTP/1.1 431")
    assert httpx.get(f"{server.url}/healthz").status_code == 200
    wait_until(lambda: not server.server.server_state.connections)
    assert server.service._admission._inside == server.service.bodies.taken == 0


def test_a_head_at_the_limit_is_read_and_one_byte_more_is_not(server):
    for more, expected in ((0, b"200"), (1, b"431")):
        fill = b"a" * (connections.HEAD_BYTES - len(HEAD) - len(b"A: ") - len(END) + more)
        with connected(server) as raw:
            raw.sendall(HEAD + b"A: " + fill + END)
            assert raw.recv(12) == b"HTTP/1.1 " + expected
            if more:
                said = everything(raw)
                assert b"content-security-policy" in said and b"connection: close" in said
                problem = json.loads(said.partition(END)[2])
                assert problem["type"] == "urn:adde:problem:large-head"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"G", b"408"),
        (HEAD, b"408"),
        (b"\r\n", b"408"),
        (HEAD + b"\r\n" + HEAD, b"200"),  # the second request on the same connection
        # The rest of an already answered body, and one byte of it.
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9" + END + b"x", b"404"),
        (
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked" + END + b"1\r\n",
            b"200",
        ),
    ],
)
def test_stalled_connections_are_closed(serve, monkeypatch, sent, expected):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.3)
    with connected(serve()) as raw:
        raw.sendall(sent)
        assert everything(raw)[9:12] == expected


def test_a_head_in_time_and_in_pieces_is_answered_and_the_connection_stays(server):
    with connected(server) as raw:
        for _ in range(2):
            for byte in HEAD + b"\r\n":
                raw.sendall(bytes([byte]))
            assert status(raw) == 200


def test_the_connection_survives_a_body_answered_before_its_end(serve):
    with connected(serve(max_bytes=1000)) as raw:
        raw.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 200000" + END)
        assert status(raw) == 413
        raw.sendall(b"\r\n\r\n" * 50_000 + HEAD + b"\r\n")
        assert status(raw) == 200


def test_pipelined_requests_are_answered_one_by_one(serve, monkeypatch):
    server, count, most = serve(), 3000, []
    begun = connections.Connection.on_headers_complete

    def counted(self):
        begun(self)
        most.append(len(self.pipeline))

    monkeypatch.setattr(connections.Connection, "on_headers_complete", counted)
    body = b'{"item": "test-000000-000", "k": 1}'
    post = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    post += b"Content-Length: %d%s%s" % (len(body), END, body)
    pair = post + b"GET /v1/items/none-%04d HTTP/1.1\r\nHost: x" + END
    asked = b"".join(pair % number for number in range(count // 30))
    with connected(server) as raw:
        thread = threading.Thread(target=raw.sendall, args=(asked * 5,))
        thread.start()
        found = b""
        while found.count(b"no item") < 5 * count // 30:
            piece = raw.recv(1 << 16)
            assert piece
            found += piece
        thread.join()
    assert found.count(b"HTTP/1.1 200") == 5 * count // 30
    places = [found.find(b"none-%04d" % number) for number in range(count // 30)]
    assert places == sorted(places) and places[0] > 0
    assert max(most) <= 1


def test_the_longest_waiting_connection_is_closed_for_a_new_one(serve, slow, picture_of):
    server = serve(connections=4)
    with connected(server) as working, connected(server, 3) as (first, second, third):
        slow(1.0)
        content = httpx.Request("POST", server.url, files={"image": picture_of("test-000000-001")})
        fields = f"Content-Type: {content.headers['content-type']}\r\nContent-Length"
        head = f"POST /v1/embed HTTP/1.1\r\nHost: x\r\n{fields}: {len(content.read())}\r\n\r\n"
        working.sendall(head.encode() + content.content)
        wait_until(lambda: server.service._admission._inside)
        first.sendall(b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        first.sendall(b"Content-Length: 9" + END)
        with connected(server) as fresh:
            fresh.sendall(HEAD + b"\r\n")
            assert status(fresh) == 200
        assert everything(second) == b""  # `first` has said something since
        for raw in (third, first):
            raw.sendall(b"" if raw is first else HEAD + b"\r\n")
        assert status(third) == 200
        assert status(working) == 200  # working connections are not closed
    text = httpx.get(f"{server.url}/metrics").text
    assert 'adde_refused_total{why="connections"} 1.0' in text


def test_a_client_that_does_not_read_is_disconnected(serve, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_TIMEOUT", 0.3)
    server = serve()
    with connected(server) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = b"GET /docs/files/swagger-ui-bundle.js HTTP/1.1\r\nHost: x" + END
        pour(raw, ask * 50, 1)
        wait_until(lambda: not server.server.server_state.connections)


def test_an_unsupported_upgrade_is_ignored(server):
    with connected(server) as raw:
        for upgrade in (b"websocket", b"h2c"):
            raw.sendall(HEAD + b"Connection: Upgrade\r\nUpgrade: " + upgrade + END)
            assert status(raw) == 200


def test_a_limit_of_open_files_leaves_some_for_all_else(monkeypatch):
    set_to = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, pair: set_to.append(pair))
    for limits, most, expected in (((64_000, 64_000), 4096, None), ((1024, 2048), 1792, 2048)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, found=limits: found)
        assert connections.Connections(4096, Metrics())._most == most
        assert set_to == ([] if expected is None else [(expected, expected)])


def test_a_key_never_holds_more_slots_than_it_leaves(serve, slow, picture_of):
    server = serve(queue=6, max_batch=1, deadline_seconds=60, keys=KEYS)
    slow(1.0)
    content, answers = picture_of("test-000000-001"), {"one": [], "two": [], "six": []}

    def ask(name):
        headers = {"authorization": f"Bearer {name}-key-of-some-length"}
        asked = {"files": {"image": content}, "headers": headers, "timeout": 60}
        answers[name].append(httpx.post(f"{server.url}/v1/embed", **asked))

    threads = []
    for name, held in (("one", 3), ("two", 4)):
        for _ in range(5):
            threads.append(threading.Thread(target=ask, args=(name,)))
            threads[-1].start()
        wait_until(lambda: server.service._admission._inside >= held)  # noqa: B023
    wait_until(lambda: len(answers["two"]) >= 3)  # requests without a slot are rejected at once
    ask("six")
    assert answers["six"][0].status_code == 200
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers["one"]].count(200) == 3
    assert {answer.status_code for answer in answers["one"]} == {200, 429}
    assert 200 in {answer.status_code for answer in answers["two"]}
    kept = [a.json()["detail"] for a in answers["two"] if a.status_code == 429]
    assert any("the rest is for other keys" in detail for detail in kept)


def test_bodies_of_one_key_leave_room_for_another(serve):
    server = serve(queue=2, max_bytes=1000, keys=KEYS)
    head = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 900\r\nAuthorization: Bearer one-key-of-some-length" + END
    with connected(server, 2) as (first, second):
        first.sendall(head + b" " * 899)
        wait_until(lambda: server.service.bodies.taken == 899)
        second.sendall(head + b" " * 300)
        assert status(second) == 429
        headers = {"authorization": "Bearer two-key-of-some-length"}
        body = json.dumps({"item": "test-000000-000"}).ljust(800)
        media = {**headers, "content-type": "application/json"}
        found = httpx.post(f"{server.url}/v1/search", content=body, headers=media)
        assert found.status_code == 200
    wait_until(lambda: server.service.bodies.taken == 0)
