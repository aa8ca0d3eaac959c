"""A folder of shards becomes a gallery: embedded once, and from where it was when interrupted."""

import atexit
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import (
    cache_folder,
    put_in_place,
    require_writable,
    sha256_of_file,
    sync_files,
    unexpected_entries,
    workplace,
)
from adde.serving import whereabouts
from adde.serving.gallery.base import (
    GALLERY_NAME,
    BusyError,
    Gallery,
    Header,
    Item,
    ItemNotFoundError,
    UnavailableError,
)
from adde.serving.gallery.embedded import ITEMS, LOCK, VECTORS, EmbeddedGallery, being_replaced
from adde.serving.gallery.embedding import Embed, Split, embed_here, shards_of
from adde.serving.gallery.fields import FieldTable
from adde.serving.onnx.session import Session
from adde.shards.index import INDEX_NAME, ShardIndex

OURS = (ITEMS, VECTORS, LOCK, "index")
"""What names begin with in a gallery, beside its header: one whose build was cut short has none."""

KEPT = 10
"""Galleries of folders of shards that are kept; of more, those not opened for longest go."""


def build_gallery(
    bundle: Bundle,
    session: Session,
    shards: Path,
    out: Path,
    split: Split = "all",
    create: Callable[[Path, Header], Gallery] = EmbeddedGallery.create,
    reopen: Callable[[Path], Gallery] | None = None,
) -> None:
    """Embeds a folder of shards into the gallery `out` in this process; see `build_with`."""
    build_with(partial(embed_here, bundle, session), bundle, shards, out, split, create, reopen)


def build_with(
    embed: Embed,
    bundle: Bundle,
    shards: Path,
    out: Path,
    split: Split = "all",
    create: Callable[[Path, Header], Gallery] = EmbeddedGallery.create,
    reopen: Callable[[Path], Gallery] | None = None,
    fields: FieldTable | None = None,
    pictures: str | None = None,
) -> None:
    """Embeds a folder of shards into the gallery `out`, replacing one that is there.

    Nobody else may write that one meanwhile. Its items that are from no shards stay.

    Until it is done it lies beside `out` as `.<name>.building` (within it, where it cannot be
    renamed), from where the next call with the same bundle, shards, split and fields goes on.

    Raises:
        BusyError: another process writes `out`, or builds it.
        UserError: `out` holds anything but a gallery or cannot be written, the shards have another
            schema than the bundle, the split is empty, an item id appears twice, a picture does not
            decode, the fields are of other items, or what should stay of `out` was embedded by
            another bundle.
    """
    lie = str(shards.resolve()) if pictures is None else whereabouts.checked(pictures)
    require_place(out)
    index = ShardIndex.read(shards)
    bundle.schema.require_same(index.schema, str(bundle.path), str(shards))
    total = sum(shard.samples for shard in shards_of(index, split))
    source = f"{sha256_of_file(shards / INDEX_NAME)} {split}"
    if fields is not None:
        fields.require_some(index, split)
        source += f" {fields.hash} {fields.id_column} {' '.join(fields.names)}"
        embed = fields.with_fields(embed)
    building = workplace(out, "building")
    with being_replaced(out), _old(out, bundle) as old:
        gallery = _resume(building, bundle, source, reopen or _writable)
        if gallery is None:
            gallery = create(building, Header.of(bundle, "embedded", shards, source))
        with closing(gallery):
            _store(embed(index, split, len(gallery)), gallery, total)
            if old is not None:
                _carry_over(old, gallery, out)
            gallery.finish()
        replace(Header.read(building), pictures=lie).write(building)
        _replace(out, building)


@contextmanager
def _old(out: Path, bundle: Bundle) -> Generator[EmbeddedGallery | None]:
    """The gallery that is to be replaced, if any of its items must stay.

    Raises:
        UserError: they were embedded by another bundle, and there are no pictures of them.
    """
    try:
        old = EmbeddedGallery(out)
    except (UserError, OSError):  # none there, one of Milvus, or a damaged one
        yield None
        return
    with closing(old):
        stay = next(old.of_no_shards(), None)
        if stay and old.header.bundle != bundle.hash:
            raise UserError(
                f"{out}: holds items that are from no shards, such as {stay[0].item_id!r}, and "
                f"were embedded by another bundle ({old.header.bundle}); build into another folder "
                "and put them in there"
            )
        yield old if stay else None


def _carry_over(old: EmbeddedGallery, gallery: Gallery, out: Path) -> None:
    """Puts items that are from no shards into the gallery that follows, unless it has their ids."""
    count = 0
    for items in old.of_no_shards():
        new = [item for item in items if not _has(gallery, item.item_id)]
        gallery.upsert(new)
        count += len(new)
    print(f"{out}: {count} items that are from no shards stay", file=sys.stderr)


def _has(gallery: Gallery, item_id: str) -> bool:
    try:
        gallery.get(item_id)
    except ItemNotFoundError:
        return False
    return True


def require_place(out: Path) -> None:
    """Refuses a folder of anything but a gallery, which is not ours to replace, and one that cannot
    be written. Raises UserError.
    """
    whole = (out / GALLERY_NAME).exists()
    found = unexpected_entries(out, lambda name: whole or name.startswith(OURS))
    if found or out.is_file():
        raise UserError(
            f"{out}: expected a new folder or a gallery, which would be replaced, found "
            f"{repr(found[0]) if found else 'a file'}; name another folder"
        )
    require_writable(out)


def _replace(out: Path, made: Path) -> None:
    """Puts a gallery in the place of another.

    Servers may still answer from a collection of Milvus that is replaced: it goes when the one
    that came after it is replaced as well.
    """
    old = _extra(out)
    if "collection" in old:
        header = Header.read(made)
        replaced = {name: old[name] for name in ("uri", "collection")}
        replace(header, extra={**header.extra, "replaced": replaced}).write(made)
    sync_files(made)
    put_in_place(made, out, GALLERY_NAME)
    if "replaced" in old:
        try:
            _drop(old["replaced"])
        except UnavailableError as error:
            print(f"warning: {old['replaced']['collection']} stays: {error}", file=sys.stderr)


def _extra(folder: Path) -> Mapping[str, Any]:
    """What an engine wrote of its own into a gallery's header; nothing where there is no header."""
    try:
        return Header.read(folder).extra
    except UserError:
        return {}


def _drop(extra: Mapping[str, Any]) -> None:
    from adde.serving.gallery.milvus import drop  # pymilvus is no part of the base install

    drop(extra["uri"], extra["collection"])


def open_gallery(folder: Path, bundle: Bundle, writable: bool = False) -> Gallery:
    """Opens a gallery of either engine. Raises UserError where another bundle embedded it."""
    header = Header.read(folder)
    header.require_bundle(bundle, folder)
    if header.engine == "milvus":
        from adde.serving.gallery.milvus import (
            MilvusGallery,  # pymilvus is no part of the base install
        )

        return MilvusGallery.open(folder)
    return EmbeddedGallery(folder, writable)


def open_or_build(bundle: Bundle, session: Session, folder: Path, split: Split = "all") -> Gallery:
    """Opens a gallery, or the one of a folder of shards, which is embedded once and kept."""
    if (folder / GALLERY_NAME).exists():
        return open_gallery(folder, bundle)
    key = f"{bundle.hash} {sha256_of_index(folder)} {folder.resolve()} {split}"
    kept = cache_folder() / f"gallery-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    if (opened := _open_kept(kept, bundle)) is not None:
        return opened
    with ExitStack() as locked:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            # Of several first users one embeds, and the others wait for it.
            lock = locked.enter_context((kept.parent / f".{kept.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (opened := _open_kept(kept, bundle)) is not None:
                return opened
            _forget(kept.parent)
        except OSError as error:
            # The answer does not depend on it: say so and go on.
            message = f"warning: {kept}: the gallery is not kept for next time: {error}"
            print(message, file=sys.stderr)
            temporary = tempfile.TemporaryDirectory(prefix="adde-gallery-")
            atexit.register(temporary.cleanup)
            kept = Path(temporary.name) / "gallery"
        build_gallery(bundle, session, folder, kept, split)
        return open_gallery(kept, bundle)


def _open_kept(kept: Path, bundle: Bundle) -> Gallery | None:
    """A gallery of the cache, marked as used; None where it is not there, or damaged."""
    try:
        opened = open_gallery(kept, bundle)
        now = time.time_ns()  # left to the kernel it is a tick of some milliseconds
        os.utime(kept, ns=(now, now))
        return opened
    except (UserError, OSError):
        return None


def _forget(cache: Path) -> None:
    """Makes room for one more gallery in the cache. Whoever has one open goes on with it."""
    opened: list[tuple[float, Path]] = []
    for folder in cache.glob("gallery-*"):
        with suppress(FileNotFoundError):  # another process forgets it, too
            opened.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(opened)[: max(0, len(opened) - KEPT + 1)]:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of_index(folder: Path) -> str:
    """Hash of what a folder of shards says it holds. Raises UserError where it is none."""
    if not (folder / INDEX_NAME).exists():
        raise UserError(
            f"{folder}: expected a gallery ({GALLERY_NAME}) or a folder of shards ({INDEX_NAME}), "
            "found neither"
        )
    return sha256_of_file(folder / INDEX_NAME)


def _store(batches: Iterator[list[Item]], gallery: Gallery, total: int) -> None:
    done = len(gallery)
    bar = tqdm(total=total, initial=done, desc="embed gallery", unit="picture", disable=None)
    with bar:
        for items in batches:
            gallery.upsert(items)
            done += len(items)
            if len(gallery) != done:
                raise UserError(
                    f"expected every item id once, found one of {items[0].item_id!r} to "
                    f"{items[-1].item_id!r} a second time; build the shards again"
                )
            bar.update(len(items))


def _writable(folder: Path) -> Gallery:
    return EmbeddedGallery(folder, writable=True)


def _resume(
    building: Path, bundle: Bundle, source: str, reopen: Callable[[Path], Gallery]
) -> Gallery | None:
    """The interrupted gallery of the same bundle and source; any other is removed."""
    if not building.exists():
        return None
    try:
        header = Header.read(building)
        if (header.bundle, header.source) == (bundle.hash, source):
            return reopen(building)
    except (BusyError, UnavailableError):
        raise  # later it may be of use
    except UserError:
        pass  # of no use any more
    with being_replaced(building):  # or another process is at it
        _discard(building)
    return None


def _discard(folder: Path) -> None:
    """Removes a gallery, with what it has in Milvus."""
    if "collection" in (extra := _extra(folder)):
        _drop(extra)
    shutil.rmtree(folder)
