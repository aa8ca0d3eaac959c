"""Shards at an address, from a server with every kind of fault."""

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
import pytest

from adde.errors import UserError
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader, iterate
from adde.shards.remote.cache import Cache
from adde.shards.remote.download import RetryPolicy
from adde.shards.remote.sources import Prefetcher, Remote, locate
from adde.shards.shard import Shard, member_rows

POLICY = RetryPolicy(deadline=8.0, read_timeout=0.4, tries=3, backoff=0.02)
SIZE = 300_001


JSON = {"Content-Type": "application/json"}


class Server(ThreadingHTTPServer):
    """Serves `files`; each request of a path gets the next of its `faults`, and the last one
    repeats.

    Faults: a number (that status), or stall, drop (half of what was asked for, then a reset),
    truncate (half, no length), understate and overstate (the length), norange, otherrange, slow.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.requests, self.over = {}, {}, [], Event()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def asked(self, path):
        """Return the start bytes of the requests of a path, in order."""
        return [start for asked, start, _ in self.requests if asked == path]

    def handle_error(self, request, client_address):
        """Ignore clients that disconnect; the tests expect them."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self):
        path, _, query = self.path.removeprefix("/download").partition("?")
        asked = self.headers.get("Range", "bytes=0-")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first)
        self.server.requests.append((path, start, query))
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if len(faults) > 1 else (faults or [None])[0]
        content = self.server.files.get(path)
        if isinstance(fault, int) or content is None:
            return self.answer(fault or 404, b"")
        if path.startswith("/storage/") and "alt=media" not in query:
            name = path.rpartition("/")[2].replace("%2F", "/")
            about = {"bucket": "bucket", "name": name, "size": str(len(content))}
            return self.answer(200, json.dumps(about).encode(), -1, JSON)
        if fault == "stall":
            self.server.over.wait(20)
            return None
        if start >= len(content):
            return self.answer(416, b"")
        body = content[start : int(last) + 1 if last else None]
        extra = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}"}
        status = 206 if "Range" in self.headers else 200
        if fault == "norange":
            return self.answer(200, content)
        if fault == "norange-drop":
            return self.answer(200, content[: len(content) // 2], len(content))
        if fault == "otherrange":
            extra["Content-Range"] = f"bytes {start + 7}-{len(content) - 1}/{len(content)}"
        half = body[: len(body) // 2]
        if fault == "drop":
            return self.answer(status, half, len(body), extra)
        if fault == "truncate":
            return self.answer(status, half, None, extra)
        if fault == "understate":
            return self.answer(status, body, len(half), extra)
        if fault == "overstate":
            return self.answer(status, body, len(body) + 9, extra)
        if fault == "slow":
            return self.answer(status, body, len(body), extra, pause=0.05)
        return self.answer(status, body, len(body), extra)

    def answer(self, status, body, length=-1, extra=(), pause=0.0):
        self.send_response(status)
        for name, value in dict(extra).items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.send_header("Connection", "close")
        self.end_headers()
        for at in range(0, len(body), 10_000):
            self.wfile.write(body[at : at + 10_000])
            if pause and self.server.over.wait(pause):
                return
        if length is None or length > len(body):
            self.server.over.wait(
                0.1
            )  # let the client read what there is before the connection breaks
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as made:
        thread = Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def remote(server, tmp_path):
    return Remote(f"{server.address}/shop", Cache(tmp_path / "cache", 1_000_000), POLICY)


def put(server, name="a.tar", size=SIZE):
    """Serve random bytes under a name; return the shard as in an index."""
    content = np.random.default_rng(list(name.encode())).bytes(size)
    server.files[f"/shop/{name}"] = content
    return Shard(name, "train", 1, size, hashlib.sha256(content).hexdigest(), member_rows((), ()))


def content_of(remote, shard):
    descriptor = remote.open(shard)
    try:
        return os.pread(descriptor, shard.bytes + 1, 0)
    finally:
        os.close(descriptor)


def kept(remote):
    """Return the names of the cache's entries."""
    return {path.name for path in remote.cache.folder.iterdir() if path.suffix != ".lock"}


def failure(remote, shard):
    """Return the message of a failed download; the cache must be empty afterwards."""
    with pytest.raises(UserError) as caught:
        remote.open(shard)
    assert not kept(remote)
    # A worker's error is passed on as the text of its traceback, including contexts.
    assert caught.value.__context__ is None
    message = str(caught.value)
    assert f"shard {shard.name} at {remote}/{shard.name}: expected" in message
    return message


def test_an_address_reads_as_its_folder(tiny_shards, server, tmp_path, monkeypatch):
    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "cache"))
    server.files = {f"/shop/{path.name}": path.read_bytes() for path in tiny_shards.iterdir()}
    here, there = ShardIndex.read(tiny_shards), ShardIndex.read(f"{server.address}/shop/")
    assert (there.shards, there.schema, there.name) == (here.shards, here.schema, here.name)
    for split in here.splits:
        for mine, theirs in zip(iterate(here, split), iterate(there, split), strict=True):
            assert (theirs.item_id, theirs.picture) == (mine.item_id, mine.picture)
            assert theirs.where.startswith(f"{server.address}/shop/{split}-00000")
    members = hashlib.sha256((tiny_shards / "index.members").read_bytes()).hexdigest()
    assert kept(there.root) == {members, *(shard.sha256 for shard in here.shards)}
    # Shards and members are downloaded once, the index every time.
    before = len(server.requests)
    assert len(list(iterate(ShardIndex.read(f"{server.address}/shop"), "train"))) == 60
    assert server.requests[before:] == [("/shop/index.json", 0, "")]


def test_buckets_of_s3(tiny_shards, server, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    check_bucket("s3", "/bucket/shop/", tiny_shards, server, tmp_path, monkeypatch)
    remote, shard = (
        Remote("s3://bucket/shop", Cache(tmp_path / "other", SIZE), POLICY),
        put(server),
    )
    server.files["/bucket/shop/a.tar"] = server.files["/shop/a.tar"]
    server.faults["/bucket/shop/a.tar"] = [None, "stall", None]
    assert content_of(remote, shard) == server.files["/shop/a.tar"]
    assert server.asked("/bucket/shop/a.tar")[:3] == [0, 10_007, 10_007]


def test_a_missing_package(remote, monkeypatch):
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    bucket = dataclasses.replace(remote, address="s3://bucket/shop")
    with pytest.raises(UserError, match=r"the packages that read s3, .*install 'adde\[remote\]'"):
        bucket.read_json("index.json")


def test_buckets_of_gs(tiny_shards, server, tmp_path, monkeypatch):
    pytest.importorskip("gcsfs")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "cache"))
    check_bucket("gs", "/storage/v1/b/bucket/o/shop%2F", tiny_shards, server, tmp_path, monkeypatch)


def check_bucket(scheme, prefix, tiny_shards, server, tmp_path, monkeypatch):
    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("adde.shards.remote.transport.BLOCK", 10_007)
    server.files = {f"{prefix}{path.name}": path.read_bytes() for path in tiny_shards.iterdir()}
    index = ShardIndex.read(f"{scheme}://bucket/shop")
    for mine, theirs in zip(iterate(ShardIndex.read(tiny_shards), "val"), iterate(index, "val")):
        assert (theirs.item_id, theirs.picture) == (mine.item_id, mine.picture)
    size = len(server.files[f"{prefix}val-000000.tar"])
    assert server.asked(f"{prefix}val-000000.tar") == list(range(0, size, 10_007))
    del server.files[f"{prefix}test-000000.tar"]
    with pytest.raises(UserError, match=rf"{scheme}://bucket/shop/test-000000.tar: .* no such fi"):
        next(iterate(index, "test"))


def test_a_local_folder_is_read_in_place(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "cache"))
    index = ShardIndex.read(str(tiny_shards))
    assert (index.root, locate(tiny_shards)) == (tiny_shards, tiny_shards)
    reader = ShardReader(index)
    reader.prefetch(index.shards)
    reader.read(index.shards[0], 0)
    reader.close()
    assert not (tmp_path / "cache").exists()


def test_settings_come_from_the_environment(monkeypatch, tmp_path):
    for name in ("ADDE_CACHE", "ADDE_CACHE_GB", "ADDE_FETCH_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = locate("s3://bucket/shop")
    assert default.cache == Cache(tmp_path / "adde" / "shards", 50_000_000_000)
    monkeypatch.setenv("ADDE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("ADDE_CACHE_GB", "0.5")
    monkeypatch.setenv("ADDE_FETCH_SECONDS", "60")
    mine = locate("gs://bucket/shop")
    assert mine.cache == Cache(tmp_path / "mine", 500_000_000)
    assert mine.policy.deadline == 60
    for wrong in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("ADDE_CACHE_GB", wrong)
        with pytest.raises(UserError, match=rf"ADDE_CACHE_GB: expected a number above 0.*{wrong}"):
            locate("s3://bucket/shop")


def test_other_addresses_are_rejected():
    with pytest.raises(UserError, match=r"ftp://host/shop: expected a folder, or an address of h"):
        locate("ftp://me:secret@host/shop")


@pytest.mark.parametrize(
    "faults, ranges",
    [
        ([], [0]),
        ([503, 503, None], [0, 0, 0]),
        ([429, 500, None], [0, 0, 0]),
        (["stall", None], [0, 0]),
        (["drop", None], [0, SIZE // 2]),
        (["truncate", None], [0, SIZE // 2]),
        (["understate", None], [0, SIZE // 2]),
        (["overstate"], [0]),
        (["norange-drop", "norange"], [0, SIZE // 2]),
        (["drop", "otherrange", None], [0, SIZE // 2, SIZE // 2]),
        # Each attempt gets half of the rest: more attempts than are allowed without progress.
        (["drop"] * 5 + [None], [0, 150000, 225000, 262500, 281250, 290625]),
    ],
)
def test_transient_faults(server, remote, faults, ranges):
    shard = put(server)
    server.faults["/shop/a.tar"] = faults
    assert content_of(remote, shard) == server.files["/shop/a.tar"]
    # Bytes that were not read when the connection broke may be requested again.
    asked = server.asked("/shop/a.tar")
    assert len(asked) == len(ranges)
    assert all((0 < a <= r + 1) if r else a == 0 for a, r in zip(asked, ranges)), asked
    assert kept(remote) == {shard.sha256}


@pytest.mark.parametrize(
    "fault, tries, found",
    [
        (404, 1, r"the file, found no such file \(404\) .*; upload it"),
        (403, 1, r"the file, found HTTP 403 Forbidden .*; correct the address or grant access"),
        (503, 3, r"bytes, found HTTP 503 Service Unavailable .*check the server"),
        ("stall", 3, r"bytes, found nothing for 0.4 s after byte 0"),
        ("norange-drop", None, r"bytes, found ClientPayloadError .* after byte \d+ "),
    ],
)
def test_permanent_faults(server, remote, fault, tries, found):
    shard = put(server)
    server.faults["/shop/a.tar"] = [fault]
    message = failure(remote, shard)
    assert re.search(found, message), message
    # A server that ignores ranges and always disconnects makes progress at first.
    asked = len(server.requests)
    assert f"(tries: {asked}, in " in message
    assert asked == tries if tries else 4 <= asked <= 8


def test_no_server(remote):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    gone = dataclasses.replace(remote, address=f"http://127.0.0.1:{port}/shop")
    shard = Shard("a.tar", "train", 1, 9, "0" * 64, member_rows((), ()))
    assert "expected 9 bytes, found ClientConnector" in failure(gone, shard)


def test_too_slow_for_the_deadline(server, remote):
    shard = put(server)
    server.faults["/shop/a.tar"] = ["slow"]
    hasty = dataclasses.replace(remote, policy=dataclasses.replace(POLICY, deadline=0.6))
    message = failure(hasty, shard)
    found = re.search(rf"expected {SIZE} bytes, found (\d+) bytes in 0.6 s", message)
    assert found is not None and int(found[1]) < SIZE  # the download stops early
    assert len(server.requests) == 1


def test_another_content_is_fetched_once_more(server, remote):
    shard = put(server)
    right, wrong = server.files["/shop/a.tar"], os.urandom(SIZE)
    server.files["/shop/a.tar"] = wrong
    message = failure(remote, shard)
    assert f"expected sha256 {shard.sha256}, found {hashlib.sha256(wrong).hexdigest()}" in message
    assert "(tries: 2, in" in message and "upload both again" in message
    assert len(server.requests) == 2
    server.files["/shop/a.tar"] = right[:-1] + bytes([right[-1] ^ 1])
    thread = Thread(target=lambda: mend(server, right))
    thread.start()
    assert content_of(remote, shard) == right
    thread.join()


def mend(server, right):
    """Serve the right content after the wrong one was requested."""
    while len(server.requests) < 3:
        time.sleep(0.001)
    server.files["/shop/a.tar"] = right


@pytest.mark.parametrize("size", [SIZE - 100_000, SIZE + 100_000])
def test_another_length(server, remote, size):
    shard = put(server)
    server.files["/shop/a.tar"] = os.urandom(size)
    message = failure(remote, shard)
    short = f"expected {SIZE} bytes, found {size} bytes"
    assert (short if size < SIZE else f"expected sha256 {shard.sha256}, found ") in message
    assert "upload" in message
    assert len(server.requests) <= 4


def test_credentials_are_not_shown(server, remote):
    shard = put(server)
    host = server.address.removeprefix("http://")
    address = f"http://me:s3cret@{host}/shop?signature=hush"
    private = dataclasses.replace(remote, address=address)
    assert content_of(private, shard) == server.files["/shop/a.tar"]
    assert server.requests[-1] == ("/shop/a.tar", 0, "signature=hush")
    shutil.rmtree(private.cache.folder)
    for fault in (404, 403, 503, "norange-drop", "stall"):
        server.faults["/shop/a.tar"] = [fault]
        message = failure(private, shard) + repr(private)
        assert "s3cret" not in message and "hush" not in message
    with pytest.raises(UserError, match=rf"index.json at {server.address}/shop/index.json: expec"):
        ShardIndex.read(address)


def test_invalid_indexes(server, remote):
    server.files["/shop/index.json"] = b'{"format": 2'
    with pytest.raises(UserError, match=r"/shop/index.json: expected JSON, found"):
        ShardIndex.read(remote.address)
    server.files["/shop/index.json"] = b'{"format": 7}'
    with pytest.raises(UserError, match=r"/shop/index.json: expected format 3, found 7"):
        ShardIndex.read(remote.address)
    shard = dataclasses.replace(put(server), sha256="../../passwd")
    with pytest.raises(UserError, match=r"a.tar: expected a sha256 in the index, found '\.\./"):
        remote.open(shard)


def test_the_least_recently_used_are_evicted(server, remote):
    shards = [put(server, f"{n}.tar") for n in range(5)]
    for shard in shards[:3]:
        content_of(remote, shard)
    content_of(remote, shards[0])
    content_of(remote, shards[3])  # three fit; 1 is the least recently used
    assert kept(remote) == {shards[n].sha256 for n in (0, 2, 3)}
    in_use = remote.open(shards[2])
    for n in (0, 3):
        content_of(remote, shards[n])
    content_of(remote, shards[4])  # 2 is the oldest, but in use
    assert kept(remote) == {shards[n].sha256 for n in (2, 3, 4)}
    rest = [remote.open(shards[n]) for n in (3, 4)]
    content_of(remote, shards[0])  # all are in use; the oldest is evicted and stays readable
    assert kept(remote) == {shards[n].sha256 for n in (0, 3, 4)}
    assert os.pread(in_use, SIZE, 0) == server.files["/shop/2.tar"]
    for descriptor in (in_use, *rest):
        os.close(descriptor)


def test_room_is_made_before_the_download(server, remote):
    """Shards and downloads together never exceed the limit."""
    shards = [put(server, f"{n}.tar") for n in range(6)]
    server.faults = {f"/shop/{n}.tar": ["slow"] for n in range(6)}
    seen, over = [], Event()

    def watch():
        while not over.wait(0.002):
            sizes = []
            for path in remote.cache.folder.glob("*"):
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            seen.append(sum(sizes))

    watcher = Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(6) as pool:
        read = list(pool.map(functools.partial(content_of, remote), shards))
    over.set()
    watcher.join()
    assert read == [server.files[f"/shop/{n}.tar"] for n in range(6)]
    assert SIZE < max(seen) <= remote.cache.limit
    assert len(server.requests) == 6


def test_a_cache_smaller_than_a_shard(server, remote):
    shard = put(server, size=1_000_001)
    with pytest.raises(UserError, match=r"a shard of 1000001 bytes.*increase ADDE_CACHE_GB"):
        remote.open(shard)
    assert not server.requests


def test_a_lock_that_is_never_released(server, remote):
    shard = put(server)
    hasty = dataclasses.replace(remote, policy=dataclasses.replace(POLICY, deadline=0.3))
    content_of(remote, put(server, "b.tar"))
    with (
        remote.cache.lock(shard.sha256, 1),
        pytest.raises(UserError, match=r"\.lock: expected the process .* to be done in 0.3 s"),
    ):
        hasty.open(shard)
    with remote.cache.lock(shard.sha256, 1):  # like a running download that needs all the room
        remote.cache.make_room(shard.sha256, 900_000, 1)
        with pytest.raises(UserError, match=r"room for a shard of 300001 .* other downloads in"):
            hasty.open(put(server, "c.tar"))


def test_a_full_disk(server, remote):
    shard = put(server)
    remote.cache.folder.mkdir()
    # Every write fails, as on a full disk.
    part = remote.cache.folder / f"{shard.sha256}.{SIZE}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(UserError) as caught:
        remote.open(shard)
    assert str(remote.cache.folder) in str(caught.value)
    assert "No space left on device; free some space, decrease ADDE_CACHE_GB" in str(caught.value)
    assert not kept(remote)
    assert content_of(remote, shard) == server.files["/shop/a.tar"]


def test_a_cache_folder_that_is_a_file(server, remote):
    remote.cache.folder.touch()
    with pytest.raises(UserError, match=r"/cache: expected to write the cache .* ADDE_CACHE"):
        remote.open(put(server))


def test_a_damaged_copy_is_fetched_again(server, remote):
    shard = put(server)
    content_of(remote, shard)
    (remote.cache.folder / shard.sha256).write_bytes(b"")
    assert content_of(remote, shard) == server.files["/shop/a.tar"]


def test_processes_share_one_download(server, remote):
    shards = [put(server, f"{n}.tar") for n in range(2)]
    server.faults["/shop/0.tar"] = ["slow"]
    content_of(remote, shards[1])  # starts fsspec's thread, which a fork does not inherit
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        read = pool.map(functools.partial(content_of, remote), [shards[0]] * 3, chunksize=1)
    assert read == [server.files["/shop/0.tar"]] * 3
    assert server.asked("/shop/0.tar") == [0]


def test_a_killed_download_is_not_an_entry(server, remote):
    shard = put(server)
    server.faults["/shop/a.tar"] = ["slow", "slow", None]
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(
            target=content_of, args=(pickle.loads(pickle.dumps(remote)), shard)
        )
        process.start()
        part = remote.cache.folder / f"{shard.sha256}.{SIZE}.part"
        before = part.stat().st_size if part.exists() else 0
        while not part.exists() or part.stat().st_size < before + 30_000:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
        assert remote.cache.open(shard.sha256, SIZE) is None
    held = part.stat().st_size
    assert 60_000 <= held < SIZE
    # A partial download is evicted like any entry, ...
    others = [put(server, f"{n}.tar") for n in range(3)]
    second = dataclasses.replace(remote, cache=Cache(remote.cache.folder, 2 * SIZE))
    copy = part.read_bytes()
    for other in others:
        content_of(second, other)
    assert kept(second) == {other.sha256 for other in others[1:]}
    # ... and otherwise continued.
    part.write_bytes(copy)
    assert content_of(remote, shard) == server.files["/shop/a.tar"]
    assert server.asked("/shop/a.tar")[-1] == held


def test_prefetch(server, remote):
    shards = [put(server, f"{n}.tar", 100_000) for n in range(12)]
    server.faults["/shop/0.tar"] = ["slow"]
    server.faults["/shop/1.tar"] = [404]
    prefetcher = Prefetcher(remote)
    prefetcher.prefetch(shards[:3])
    while not server.requests:
        time.sleep(0.005)
    # The reader waits for the running download and does not start another.
    assert content_of(remote, shards[0]) == server.files["/shop/0.tar"]
    assert server.asked("/shop/0.tar") == [0]
    while shards[2].sha256 not in kept(remote):
        time.sleep(0.005)
    with pytest.raises(UserError, match="no such file"):
        remote.open(shards[1])
    # At most half of the cache is fetched ahead.
    prefetcher.prefetch(shards[3:])
    while shards[7].sha256 not in kept(remote):
        time.sleep(0.005)
    time.sleep(0.1)
    assert kept(remote) == {shards[n].sha256 for n in (0, 2, 3, 4, 5, 6, 7)}
