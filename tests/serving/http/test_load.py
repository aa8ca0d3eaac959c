"""Many concurrent requests: bitwise right, none lost, none beyond its deadline."""

import asyncio
import base64
import json
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

JSON = b"Content-Type: application/json\r\nContent-Length: 100"
EDITS = [{}, {"colour": "red"}, {"shape": "disc", "border": "white"}, {"colour": "blue"}]


def wait_until(what):
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(client, content, **asked):
    return client.post("/v1/search", files={"image": content}, data={"request": json.dumps(asked)})


@pytest.fixture
def contents(picture_of):
    return [picture_of(f"train-000000-{number:03d}") for number in range(24)]


def test_32_threads_get_what_each_would_get_alone(serve, searcher, contents):
    server = serve(max_wait_ms=20, max_batch=8)
    asked = [(content, EDITS[at % 4]) for at, content in enumerate(contents * 8)]
    limits = httpx.Limits(max_connections=32)
    with (
        httpx.Client(base_url=server.url, limits=limits) as client,
        ThreadPoolExecutor(32) as threads,
    ):
        answers = list(threads.map(lambda a: ask(client, a[0], edits=a[1], k=7), asked))
    assert {answer.status_code for answer in answers} == {200}
    sizes = server.service.metrics.batches.collect()[0].samples
    count = next(s.value for s in sizes if s.name.endswith("_count"))
    assert count < len(asked) / 2, "requests were not embedded together"
    for (content, edits), answer in zip(asked, answers):
        result = searcher.search(content, edits, k=7)
        found = [(a["item_id"], a["distance"]) for a in answer.json()["answers"]]
        assert found == [(a.item_id, a.distance) for a in result]  # to the bit


def test_embeddings_under_load_are_equal_to_the_bit(serve, searcher, contents):
    server = serve(max_wait_ms=20)
    limits = httpx.Limits(max_connections=32)
    with (
        httpx.Client(base_url=server.url, limits=limits) as client,
        ThreadPoolExecutor(32) as threads,
    ):

        def embed(content):
            return client.post("/v1/embed", files={"image": content}).json()

        answers = list(threads.map(embed, contents * 4))
    for content, answer in zip(contents * 4, answers):
        (alone,) = searcher.embed([searcher.picture(content)])
        assert np.array_equal(np.array(answer["embedding"], np.float32), alone.embedding)


def test_a_burst_of_ten_queues_is_answered_or_rejected(serve, slow, contents):
    slow(0.05)
    server = serve(queue=4, max_batch=2)
    limits = httpx.Limits(max_connections=40)
    with httpx.Client(base_url=server.url, limits=limits, timeout=30) as client:
        with ThreadPoolExecutor(40) as threads:
            answers = list(threads.map(lambda c: ask(client, c), (contents * 2)[:40]))
        statuses = [answer.status_code for answer in answers]
        assert len(statuses) == 40  # none lost
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 4
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["type"] == "urn:adde:problem:queue-full"
        # Nothing of the burst is left over.
        assert ask(client, contents[0]).status_code == 200
    refused = server.service.metrics.refused.labels("queue")._value.get()
    assert refused == statuses.count(429)
    assert server.service._admission.pending_pictures == server.service._admission._inside == 0


def test_an_overdue_request_gets_504_and_frees_its_slot(serve, contents):
    server = serve(queue=1, deadline_seconds=0.5)
    batcher, go_on = server.service.backend.batcher, threading.Event()
    embed = batcher._embed

    def wait(pictures):
        assert go_on.wait(60)
        return embed(pictures)

    with httpx.Client(base_url=server.url) as client:
        assert ask(client, contents[0]).status_code == 200
        batcher._embed = wait
        try:
            answer = ask(client, contents[0])
            assert (answer.status_code, answer.json()["type"]) == (504, "urn:adde:problem:deadline")
            assert client.get("/healthz").status_code == 200
            # The slot is free while the encoder is still busy: the next request gets no 429.
            assert client.post("/v1/search", json={"item": "test-000000-000"}).status_code == 200
        finally:
            go_on.set()


@pytest.mark.parametrize("path", ["/v1/items", "/v1/items/test-000000-003"])
def test_browsing_takes_a_slot_has_a_deadline_and_can_be_cancelled(serve, path):
    server = serve(queue=1, deadline_seconds=0.5)
    gallery, go_on = server.service.backend.searcher.gallery, threading.Event()

    def wait(*_):
        go_on.wait(60)
        raise RuntimeError("nobody waits for it any more")

    gallery.browse = gallery.get = wait
    with httpx.Client(base_url=server.url) as client, ThreadPoolExecutor(1) as threads:
        looked = threads.submit(httpx.get, f"{server.url}{path}", timeout=20)
        while not server.service._admission._inside and not looked.done():
            time.sleep(0.01)
        assert client.get("/v1/items").status_code in (429, 504)  # 504: the other's time was over
        assert looked.result().status_code == 504
        assert server.service._admission._inside == server.service._admission.pending_pictures == 0
        go_on.set()


def test_a_body_that_trickles_is_408(serve):
    server = serve(deadline_seconds=0.3)
    with socket.create_connection(server.url[7:].split(":")) as raw:
        raw.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\n" + JSON + b"\r\n\r\nabc")
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_disconnected_client_frees_its_slot_and_its_picture_is_not_embedded(
    serve, slow, contents
):
    slow(0.3)
    server = serve(queue=4, max_batch=1)
    request = httpx.Request("POST", f"{server.url}/v1/embed", files={"image": contents[0]})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    message = f"POST /v1/embed HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    gone = [socket.create_connection(server.url[7:].split(":")) for _ in range(4)]
    for raw in gone:
        raw.sendall(message)
    for _ in range(200):  # until all four are admitted
        if server.service._admission._inside == 4:
            break
        time.sleep(0.01)
    assert httpx.post(f"{server.url}/v1/embed", files={"image": contents[0]}).status_code == 429
    time.sleep(0.1)
    for raw in gone:
        raw.close()
    for _ in range(200):
        if not server.service._admission._inside:
            break
        time.sleep(0.01)
    assert server.service._admission._inside == server.service._admission.pending_pictures == 0
    assert httpx.post(f"{server.url}/v1/embed", files={"image": contents[0]}).status_code == 200
    # Two were in the encoder when they left; the two that waited were never encoded.
    embedded = server.service.metrics.batches.collect()[0].samples
    assert next(s.value for s in embedded if s.name.endswith("_count")) == 3
    routes = server.service.metrics.requests.collect()[0].samples
    left = [s.value for s in routes if s.labels.get("status") == "499" and "_count" in s.name]
    assert left == [4]


def test_bodies_being_read_hold_no_slot_and_are_freed_on_disconnect(serve):
    server = serve(queue=1, max_bytes=1000)
    clients = [socket.create_connection(server.url[7:].split(":")) for _ in range(20)]
    for raw in clients:
        raw.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\n" + JSON + b"\r\n\r\nabc")
    wait_until(lambda: server.service.bodies.taken == 60)
    found = httpx.post(f"{server.url}/v1/search", json={"item": "test-000000-000"})
    assert found.status_code == 200
    for raw in clients:
        raw.close()
    wait_until(lambda: server.service.bodies.taken == 0)
    assert server.service._admission._inside == server.service._admission.pending_pictures == 0


def test_a_lone_request_does_not_wait_for_others(serve, contents):
    server = serve(max_wait_ms=1000)
    batcher, waits = server.service.backend.batcher, []
    wait = batcher._wait

    def noted(seconds):
        waits.append(seconds)
        return wait(seconds)

    batcher._wait = noted
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            assert ask(client, contents[0]).status_code == 200
    assert set(waits) == {None}  # lanes wait for a picture, and no picture for others


def test_a_failing_batch_fails_alone(serve, monkeypatch, contents):
    server = serve()
    searcher = server.service.backend.searcher
    failed = threading.Event()

    def fail(pictures):
        if not failed.is_set():
            failed.set()
            raise RuntimeError("out of memory")
        return type(searcher).embed(searcher, pictures)

    server.service.backend.batcher._embed = fail
    with httpx.Client(base_url=server.url) as client:
        assert ask(client, contents[0]).status_code == 500
        assert ask(client, contents[0]).status_code == 200


def test_a_swap_opens_the_gallery_in_a_thread_and_reports_a_late_failure(serve, monkeypatch):
    service, loop = (server := serve()).service, server.server._loop
    kind, old, asked = type(service.backend.searcher.gallery), service.backend, []
    probe = kind.probe

    def noted(self):
        asked.append(threading.current_thread())
        return probe(self)

    monkeypatch.setattr(kind, "probe", noted)
    asyncio.run_coroutine_threadsafe(service.reload(), loop).result(60)
    assert service.swap == "done" and service.backend is not old
    assert asked and server._thread not in asked
    swapped = service.backend
    monkeypatch.setattr("adde.serving.http.service.Backend", None)
    asyncio.run_coroutine_threadsafe(service.reload(), loop).result(60)
    assert service.swap == "failed" and service.backend is swapped
    assert (
        httpx.post(f"{server.url}/v1/search", json={"item": "test-000000-000"}).status_code == 200
    )


@pytest.mark.parametrize("form", [True, False])
def test_a_decoded_picture_is_released(serve, contents, form):
    server, go_on, count = serve(max_batch=1, deadline_seconds=60), threading.Event(), 4
    batcher = server.service.backend.batcher
    batcher._embed, embed = lambda pictures: (go_on.wait(60), embed(pictures))[1], batcher._embed
    content = contents[0] + bytes(2_000_000)  # data after the picture's end remains unread
    encoded = {"image": base64.b64encode(content).decode()}
    body = {"files": {"image": content}} if form else {"json": encoded}
    request = httpx.Request("POST", f"{server.url}/v1/embed", **body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    message = f"POST /v1/embed HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    clients = []
    tracemalloc.start()
    try:
        for _ in range(count):
            raw = socket.create_connection(server.url[7:].split(":"))
            raw.sendall(message)
            clients.append(raw)
        wait_until(lambda: server.service._admission._inside == count)
        wait_until(lambda: server.service._admission.pending_pictures == 0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        go_on.set()
    for raw in clients:
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        raw.close()
    assert held < len(content)


def test_every_search_thread_limits_its_libraries(serve, monkeypatch):
    told = []
    monkeypatch.setattr("adde.serving.http.health.limit_libraries", told.append)
    pool, together = serve(threads=3).service.backend.gallery._threads, threading.Barrier(3)
    for asked in [pool.submit(together.wait, 30) for _ in range(3)]:
        asked.result()
    assert told == [3, 3, 3]
