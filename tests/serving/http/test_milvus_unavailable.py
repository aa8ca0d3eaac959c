"""Milvus down or stuck: reported at once, nothing hangs or is lost, everything recovers."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from adde.errors import UserError
from adde.serving.gallery.base import UnavailableError
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.milvus import MilvusGallery
from adde.serving.http.backend import BackendConfig
from adde.serving.http.settings import Settings
from tests.serving.http.conftest import InThread

pytest.importorskip("milvus_lite")

DEADLINE = 12.0
SEARCH = {"item": "test-000000-003", "edits": {"colour": "green"}, "k": 5}


class Milvus:
    """A server of Milvus Lite, as a process that can be killed, stopped and started again."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{self.port}", folder
        self.start()

    def start(self):
        words = ["-m", "milvus_lite", "server", "--data-dir", self._folder]
        words += ["--host", "127.0.0.1", "--port", self.port]
        command = [sys.executable, *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._listens)

    def _listens(self):
        assert self.process.poll() is None
        with socket.socket() as tried:
            return not tried.connect_ex(("127.0.0.1", self.port))

    def go(self, how):
        self.process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        if how == "killed":
            self.process.wait()

    def come_back(self, how):
        if how == "killed":
            self.start()
        else:
            self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.wait()


def wait_for(what, seconds=30.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def milvus(tmp_path):
    with closing(Milvus(tmp_path / "milvus")) as started:
        yield started


@pytest.fixture
def folder(milvus, bundle, session, tiny_shards, tmp_path):
    build_gallery(
        bundle, session, tiny_shards, tmp_path / "g", "test", MilvusGallery.creator(milvus.uri)
    )
    return tmp_path / "g"


@pytest.fixture
def client(tiny_bundle, folder, decoders):
    settings = Settings(drain_seconds=0, deadline_seconds=DEADLINE)
    with (
        closing(InThread(BackendConfig(tiny_bundle, folder), settings, decoders)) as server,
        httpx.Client(base_url=server.url, timeout=2 * DEADLINE) as opened,
    ):
        yield opened


def search(client):
    start = time.monotonic()
    answer = client.post("/v1/search", json=SEARCH)
    return answer, time.monotonic() - start


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("killed", 1),
        ("stopped", 1),
        pytest.param("killed", 30, marks=pytest.mark.slow),
        pytest.param("stopped", 30, marks=pytest.mark.slow),
    ],
)
def test_the_server_reports_it_and_recovers(client, milvus, how, seconds):
    before, _ = search(client)
    assert before.status_code == 200
    milvus.go(how)
    # More requests than threads, before anything is noticed.
    with ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(lambda _: search(client), range(48)))
    assert {answer.status_code for answer, _ in answers} == {503}
    assert max(taken for _, taken in answers) < DEADLINE + 1
    refused, taken = search(client)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:adde:problem:gallery-away")
    assert refused.headers["retry-after"] == "2"
    assert str(milvus.port) not in refused.text
    assert taken < 0.5
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert search(client)[0].status_code == 503
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/items/test-000000-003").status_code == 503
        assert client.get("/healthz").json()["items"] == 24
        time.sleep(0.2)
    milvus.come_back(how)
    wait_for(lambda: client.get("/readyz").status_code == 200, 10)
    after, _ = search(client)
    assert (after.status_code, after.content) == (200, before.content)


def test_one_client_does_not_starve_the_others(client):
    assert client.get("/v1/items/men's-1").status_code == 404
    assert client.get("/v1/items/a%07b").status_code == 422
    asked = {**SEARCH, "filters": {"colour": "\x07"}}
    assert client.post("/v1/search", json=asked).status_code == 422
    assert client.get("/readyz").status_code == 200
    assert search(client)[0].status_code == 200


@pytest.mark.parametrize("how", ["killed", pytest.param("stopped", marks=pytest.mark.slow)])
def test_adding_items_during_a_rebuild_is_rejected(folder, milvus, random_items, how, monkeypatch):
    monkeypatch.setattr("adde.serving.gallery.milvus.TIMEOUT", 1.0)
    new, old = random_items(2, prefix="new"), random_items(1, seed=3, prefix="test-000000-003")
    with closing(MilvusGallery(folder)) as gallery:
        gallery.upsert(old)
        milvus.go(how)
        with pytest.raises(UnavailableError, match=f"{milvus.uri}: Milvus did not answer"):
            gallery.upsert(new)
        with pytest.raises(UnavailableError):
            gallery.delete([old[0].item_id])
        milvus.come_back(how)
        wait_for(lambda: there(gallery))
        assert gallery.get(old[0].item_id).norm == pytest.approx(old[0].norm)
        gallery.upsert(new)  # as the error says: items that had arrived are replaced by themselves
        assert gallery.delete([old[0].item_id]) in (0, 1)
        assert len(gallery) == 24 + 2
        assert gallery.get("new-1").norm == pytest.approx(new[1].norm)


def opens(folder):
    try:
        MilvusGallery(folder).close()
    except UnavailableError:
        return False
    return True


def there(gallery):
    try:
        return gallery.probe() > 0
    except UnavailableError:
        return False


def test_a_build_that_loses_milvus_resumes(
    bundle, session, tiny_shards, milvus, tmp_path, monkeypatch
):
    monkeypatch.setattr("adde.serving.gallery.embedding.BATCH", 16)
    monkeypatch.setattr("adde.serving.gallery.milvus.TIMEOUT", 1.0)

    class Going:
        """A session that stops Milvus at its third batch."""

        batches = 0

        def encode(self, images):
            self.batches += 1
            if self.batches == 3:
                milvus.go("killed")
            return session.encode(images)

    words = (tiny_shards, tmp_path / "g", "all", MilvusGallery.creator(milvus.uri))
    with pytest.raises(UserError, match="Milvus did not answer"):
        build_gallery(bundle, Going(), *words, MilvusGallery)
    rest = Going()
    rest.batches = 10
    with pytest.raises(UnavailableError):
        build_gallery(bundle, rest, *words, MilvusGallery)
    milvus.come_back("killed")
    wait_for(lambda: opens(tmp_path / ".g.building"))
    build_gallery(bundle, rest, *words, MilvusGallery)
    assert rest.batches == 10 + 4
    with closing(MilvusGallery(tmp_path / "g")) as gallery:
        assert len(gallery) == 96
