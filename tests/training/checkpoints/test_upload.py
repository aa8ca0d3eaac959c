"""Mirrored checkpoints: kept, retried, downloaded, and never blocking the training."""

from itertools import count
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from adde.errors import UserError
from adde.files import this_process
from adde.schema import Attribute, Schema
from adde.shards.index import ShardIndex
from adde.shards.shard import Shard, member_rows
from adde.training.checkpoints import checkpoint as checkpoints
from adde.training.checkpoints import upload
from adde.training.checkpoints.checkpoint import Position
from adde.training.checkpoints.flat_shards import FlatShard
from adde.training.checkpoints.saving import Saver
from adde.training.checkpoints.upload import Bucket, fetch, require_empty
from adde.training.config import Checkpoints, Config

SCHEMA = Schema((Attribute("colour", ("red", "blue")),))
MEMBERS = member_rows([2], [[0, 1, 2, 3, 4]] * 2)
SHARD = Shard("train-000000.tar", "train", 2, 9, "0" * 64, MEMBERS)
INDEX = ShardIndex(Path("shards"), "toy", SCHEMA, (SHARD,))

COUNT = count()


@pytest.fixture(scope="module")
def s3():
    """A server with S3's protocol."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def address(request, tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "BACKOFF", 0.01)
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{next(COUNT)}"
        S3FileSystem().mkdir(bucket)
        yield f"s3://{bucket}/runs/shop"
        S3FileSystem.clear_instance_cache()
    else:
        yield f"{request.param}://{tmp_path}/bucket/shop"
        MemoryFileSystem.store.clear()


def saver_of(run, address):
    config = Config(run=run, checkpoints=Checkpoints(upload=address, keep=2, timeout=20))
    return Saver(config, INDEX, this_process())


def save(saver, step, best=None):
    pieces = {"model/weight": FlatShard.of(torch.full((3,), float(step)))}
    figures = best and {"hit@30": best, "hit@10": 0.0, "hit@1": 0.0}
    saver.save(Position("encoder", step, step), lambda: pieces, best=figures)
    saver.wait()


@pytest.fixture
def uploaded(address, tmp_path):
    """An address with the uploads of a run of five checkpoints, of which the second is the best."""
    saver = saver_of(tmp_path / "run", address)
    for step in range(1, 6):
        save(saver, step, best=0.9 if step == 2 else None)
    saver.close()
    assert saver.figures()["upload_failures"] == 0
    return address


def content(address):
    system, root = fsspec.core.url_to_fs(address)
    return {path.removeprefix(root): system.cat_file(path) for path in system.find(root)}


def test_the_address_holds_what_the_folder_does(uploaded, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    here = {f"/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert content(uploaded) == here
    assert {Path(name).parts[1] for name in here} == {
        *("step-00000002", "step-00000004", "step-00000005", "best.json")
    }


def test_an_empty_machine_gets_the_newest_and_the_best(uploaded, tmp_path, capsys):
    fetch(Bucket(uploaded), tmp_path / "new")
    assert f"fetched {uploaded}/step-00000005" in capsys.readouterr().out
    found = checkpoints.last_checkpoint(tmp_path / "new")
    assert found.position.step == 5
    assert found.tensors("model")["weight"].whole().tolist() == [5.0] * 3
    assert [p.name for p in checkpoints.folders(tmp_path / "new")] == [
        *("step-00000005", "step-00000002")
    ]
    assert not checkpoints.is_best(tmp_path / "new", {"hit@30": 0.8, "hit@10": 1, "hit@1": 1})
    # If the newest is already there, nothing is downloaded.
    fetch(Bucket(uploaded), tmp_path / "new")
    assert not capsys.readouterr().out


def test_what_is_damaged_or_incomplete_there_is_named_and_passed_over(uploaded, tmp_path, capsys):
    system, root = fsspec.core.url_to_fs(uploaded)
    system.rm(f"{root}/step-00000005/state.json")
    system.pipe_file(f"{root}/step-00000004/part-00000.safetensors", b"short")
    fetch(Bucket(uploaded), tmp_path / "new")
    error = capsys.readouterr().err
    assert "step-00000004/part-00000.safetensors: damaged: expected sha256" in error
    assert "step-00000005" not in error
    assert checkpoints.last_checkpoint(tmp_path / "new").position.step == 2
    system.rm(f"{root}/step-00000002/part-00000.safetensors")
    with pytest.raises(UserError, match="expected an intact checkpoint, found all 2 damaged"):
        fetch(Bucket(uploaded), tmp_path / "other")


def test_a_fresh_run_does_not_push_out_another(uploaded):
    with pytest.raises(UserError, match="expected no checkpoints, found step-00000005 of another"):
        require_empty(Bucket(uploaded))


def test_failures_are_tried_again(address, tmp_path, monkeypatch):
    bucket, fail = Bucket(address), [OSError("reset"), TimeoutError("slow")]
    put = bucket._system.put_file

    def put_file(*arguments, **options):
        if fail:
            raise fail.pop()
        return put(*arguments, **options)

    monkeypatch.setattr(bucket._system, "put_file", put_file)  # fsspec caches instances
    saver = saver_of(tmp_path / "run", address)
    save(saver, 1)
    saver.close()
    assert not fail
    assert saver.figures()["upload_failures"] == 0
    assert "/step-00000001/state.json" in content(address)


def test_training_goes_on_without_uploads_and_counts_them(address, tmp_path, monkeypatch, capsys):
    system = Bucket(address)._system

    def refuse(*_, **__):
        raise PermissionError("no write access")

    monkeypatch.setattr(system, "put_file", refuse)
    saver = saver_of(tmp_path / "run", address)
    for step in (1, 2):
        save(saver, step)
        saver.check()
    saver.close()
    assert saver.figures()["upload_failures"] >= 1
    warning = capsys.readouterr().err
    assert f"{address}: checkpoints not uploaded in 5 tries: PermissionError: no write" in warning
    assert not any("state.json" in name for name in content(address))
    assert checkpoints.last_checkpoint(tmp_path / "run").position.step == 2


def test_an_upload_that_was_cut_short_is_none(address, tmp_path, monkeypatch):
    bucket = Bucket(address)
    save(saver_of(tmp_path / "run", None), 1)
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    bucket.upload(path)
    put = bucket.put

    def killed(file, name):
        if name.endswith("tensors.json"):
            raise KeyboardInterrupt
        put(file, name)

    monkeypatch.setattr(bucket, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        bucket.upload(path)  # replaces the complete one
    fetch(Bucket(address), tmp_path / "new")
    assert checkpoints.last_checkpoint(tmp_path / "new") is None


@pytest.mark.parametrize("address", ["http://shop/runs", "runs/shop", "nosuch://shop"])
def test_an_address_that_cannot_be_written_to_is_refused(address):
    with pytest.raises(UserError, match=r"checkpoints\.upload: "):
        Bucket(address)


def test_an_address_that_cannot_be_read_ends_the_start_and_hides_its_password(monkeypatch):
    monkeypatch.setattr(upload, "BACKOFF", 0.01)
    bucket = Bucket("memory://me:s3cret@shop/run")

    def unreachable(*_, **__):
        raise OSError("no route to memory://me:s3cret@shop/run")

    monkeypatch.setattr(bucket._system, "ls", unreachable)
    with pytest.raises(UserError) as caught:
        fetch(bucket, Path("nowhere"))
    assert "memory://shop/run: expected to list checkpoints, found OSError" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_checkpoint_replaced_while_it_is_uploaded_arrives_whole(address, tmp_path, monkeypatch):
    bucket, saver = Bucket(address), saver_of(tmp_path / "run", None)
    save(saver, 1)
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    put, replace = bucket.put, [True]

    def put_and_replace(file, name):
        put(file, name)
        if replace:
            replace.pop()
            # Like the first checkpoint of a stage, which replaces the last of the stage before.
            pieces = {"model/weight": FlatShard.of(torch.full((3,), 7.0))}
            saver.save(Position("adde", 0, 1), lambda: pieces)
            saver.wait()

    monkeypatch.setattr(bucket, "put", put_and_replace)
    bucket.upload(path)
    fetch(Bucket(address), tmp_path / "new")
    found = checkpoints.last_checkpoint(tmp_path / "new")
    assert found.position == Position("adde", 0, 1)
    assert found.tensors("model")["weight"].whole().tolist() == [7.0] * 3
