"""The program as a process: start, swaps, end."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from adde.bundle import Bundle
from adde.serving import Searcher
from adde.serving.gallery.base import read_picture
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.session import Session

PROGRAM = Path(__file__).parents[3] / "serve_onnx" / "server.py"
ITEM = "test-000000-003"
WANTED = {"edits": {"colour": "red"}, "k": 6}
ASKED = {"item": ITEM, **WANTED}


@pytest.fixture(scope="session")
def other(tiny_bundle, tiny_shards, tmp_path_factory):
    """Another bundle and its gallery: the tiny one with other weights."""
    folder = tmp_path_factory.mktemp("other")
    copied = shutil.copytree(tiny_bundle, folder / "bundle")
    graph = onnx.load(copied / "encoder.onnx")
    for weights in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim > 1:
            changed = np.flip(values, axis=0).copy()
            weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(graph, copied / "encoder.onnx")
    bundle = _rewritten(copied, tiny_bundle)
    build_gallery(bundle, Session(bundle), tiny_shards, folder / "gallery")
    return folder / "bundle", folder / "gallery"


def _rewritten(folder, original):
    """The bundle of a folder whose files were changed deliberately."""
    read = Bundle.read(original)
    Bundle(folder, read.schema, read.preprocess, read.width, read.details).write()
    return Bundle.read(folder)


def answers_of(bundle, gallery):
    """The bundle's hash, and its answers to ASKED by item and by picture."""
    searcher = Searcher(bundle, gallery)
    with closing(searcher.gallery):
        by_item = searcher.search(**ASKED)
        by_picture = searcher.search(picture_in(searcher.gallery), **WANTED)
    return searcher.bundle.hash, [
        [(answer.item_id, answer.distance) for answer in found] for found in (by_item, by_picture)
    ]


def picture_in(gallery):
    return read_picture(gallery.header, gallery.get(ITEM))


@contextmanager
def asking(url, threads=6, **body):
    """Send requests without pause; yield (answers, failures), complete on exit."""
    answers, failures, stop = [], [], threading.Event()
    body = body or {"json": ASKED}

    def ask():
        with httpx.Client(base_url=url, timeout=20) as client:
            while not stop.is_set():
                try:
                    answers.append(client.post("/v1/search", **body))
                except httpx.HTTPError as error:
                    failures.append(error)

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield answers, failures
    finally:
        stop.set()
        for thread in running:
            thread.join()


def test_a_swap_under_load_fails_no_request_and_mixes_no_answers(
    process, other, tiny_bundle, tiny_gallery, tmp_path
):
    pairs = [(tiny_bundle, tiny_gallery), other]
    expected = dict(answers_of(*pair) for pair in pairs)
    assert len(expected) == 2
    for found in zip(*expected.values()):
        assert found[0] != found[1]
    with closing(open_gallery(tiny_gallery, Bundle.read(tiny_bundle))) as gallery:
        # As a form, so that decoders and batches are busy when the backend is replaced.
        form = {"files": {"image": picture_in(gallery)}, "data": {"request": json.dumps(WANTED)}}
    links = tmp_path / "bundle", tmp_path / "gallery"

    def point(pair):
        for link, folder in zip(links, pair):
            link.unlink(missing_ok=True)
            link.symlink_to(folder)

    point(pairs[0])
    server = process(bundle=links[0], gallery=links[1])
    with asking(server.url, 4) as by_item, asking(server.url, 8, **form) as by_picture:
        for count in range(1, 4):
            time.sleep(0.3)
            point(pairs[count % 2])
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("swapped", count)
        time.sleep(0.3)
    for kind, (answers, failures) in enumerate((by_item, by_picture)):
        assert not failures
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["bundle"] for answer in answers} == set(expected)
        for answer in answers:
            content = answer.json()
            found = [(a["item_id"], a["distance"]) for a in content["answers"]]
            assert found == expected[content["bundle"]][kind]
    assert httpx.get(f"{server.url}/healthz").json()["swap"] == "done"


def test_a_bad_bundle_keeps_the_old_one_serving_and_logs_why(
    process, other, tiny_bundle, tiny_gallery, tmp_path
):
    bundle, gallery = tmp_path / "bundle", tmp_path / "gallery"
    shutil.copytree(tiny_bundle, bundle)
    shutil.copytree(tiny_gallery, gallery)
    server = process(bundle=bundle, gallery=gallery)
    served = httpx.get(f"{server.url}/healthz").json()["bundle"]

    def swap(count):
        server.process.send_signal(signal.SIGHUP)
        message = server.wait_for("swap failed", count)["message"]
        health = httpx.get(f"{server.url}/healthz").json()
        assert (health["bundle"], health["swap"]) == (served, "failed")
        assert httpx.post(f"{server.url}/v1/search", json=ASKED).status_code == 200
        return message

    flip(bundle / "encoder.onnx")
    assert "encoder.onnx: damaged: expected sha256" in swap(1)
    shutil.rmtree(bundle)
    shutil.copytree(other[0], bundle)
    assert "expected a gallery of bundle" in swap(2)
    shutil.rmtree(gallery)
    assert "expected a gallery" in swap(3)
    shutil.copytree(other[1], gallery)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("swapped")
    assert httpx.get(f"{server.url}/healthz").json()["bundle"] != served
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'adde_swaps_total{outcome="failed"} 3.0' in metrics
    assert 'adde_swaps_total{outcome="done"} 1.0' in metrics


def flip(path, at=100):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_sigterm_fails_readiness_first_keeps_answering_and_exits_with_0(process):
    # Longer than the requests sent meanwhile take, even on a busy machine.
    server = process("--drain-seconds", 5, "--allow-host", "shop.example")
    assert httpx.get(f"{server.url}/readyz", headers={"host": "evil.example"}).status_code == 421
    with socket.create_connection(server.url[7:].split(":")) as raw:
        with asking(server.url) as (answers, failures):
            body = b'{"item": "test-000000-003"}'
            head = "Host: shop.example\r\nContent-Type: application/json\r\nContent-Length"
            head = f"POST /v1/search HTTP/1.1\r\n{head}: {len(body)}\r\n\r\n"
            raw.sendall(head.encode() + body[:9])
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            before = len(answers)
            refused = httpx.get(f"{server.url}/readyz")
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:adde:problem:draining"
            answer = httpx.post(f"{server.url}/v1/search", json=ASKED)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            time.sleep(0.7)
        # By now a load balancer has noticed and sends no more requests.
        assert len(answers) > before + 10
        assert not failures
        assert {answer.status_code for answer in answers} == {200}
        server.wait_for("Shutting down")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/readyz")
        # An admitted request is answered after the listener is closed.
        raw.sendall(body[9:])
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
    assert server.process.wait(10) == 0


def test_a_second_signal_ends_the_wait(process):
    server = process("--drain-seconds", 60)
    server.process.send_signal(signal.SIGINT)
    server.wait_for("draining")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0


def run(*arguments):
    command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_startup_errors_are_one_line(tiny_bundle, tiny_gallery, other, tmp_path):
    pair = ("--bundle", tiny_bundle, "--gallery", tiny_gallery)
    damaged = shutil.copytree(tiny_bundle, tmp_path / "damaged")
    flip(damaged / "memory.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = [
            ((*pair, "--port", taken.getsockname()[1]), "cannot be bound"),
            ((*pair, "--host", "0.0.0.0", "--port", 0), "expected API keys, found none"),
            ((*pair, "--require-key"), "expected API keys, found none"),
            ((*pair, "--queue", 0), "--queue: expected 1"),
            ((*pair, "--allow-host", "https://x", "--port", 0), "--allow-host: expected a name"),
            (("--bundle", damaged, "--gallery", tiny_gallery, "--port", 0), "memory.onnx: damaged"),
            (("--bundle", tiny_bundle, "--gallery", other[1], "--port", 0), "gallery of bundle"),
            ((*pair, "--device", "cuda", "--port", 0), "which it cannot"),
        ]
        for arguments, message in cases:
            done = run(*arguments)
            assert done.returncode == 1
            last = done.stderr.splitlines()[-1]
            assert last.startswith("error: "), done.stderr
            assert message in last
            assert "Traceback" not in done.stderr


def running():
    """Process ids to their parents' ids, without zombies."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
            if rest[0] != "Z":
                found[int(pid)] = int(rest[1])
    return found


def test_no_process_outlives_a_server_that_is_killed(process):
    server = process()
    children = {pid for pid, parent in running().items() if parent == server.process.pid}
    assert children
    server.process.kill()
    server.process.wait()
    for _ in range(200):
        if not children & set(running()):
            return
        time.sleep(0.05)
    raise AssertionError(children & set(running()))
