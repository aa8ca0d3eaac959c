"""Build galleries from folders of shards; an interrupted build resumes."""

import shutil
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import (
    put_in_place,
    require_writable,
    sha256_of_file,
    sync_files,
    unexpected_entries,
    workplace,
)
from adde.serving import picture_location
from adde.serving.gallery.base import (
    GALLERY_NAME,
    BusyError,
    Gallery,
    Header,
    Item,
    ItemNotFoundError,
    Split,
    UnavailableError,
)
from adde.serving.gallery.embedded import VECTORS, EmbeddedGallery
from adde.serving.gallery.embedding import Embed, count_items, embed_here
from adde.serving.gallery.field_table import FieldTable
from adde.serving.gallery.item_database import ITEMS
from adde.serving.gallery.row_file import LOCK, writer_lock
from adde.serving.onnx.session import Session
from adde.shards.index import INDEX_NAME, ShardIndex

OURS = (ITEMS, VECTORS, LOCK, "index")
"""Prefixes of file names that an interrupted build may leave without a header."""


def build_gallery(
    bundle: Bundle,
    session: Session,
    shards: Path,
    out: Path,
    split: Split = "all",
    create: Callable[[Path, Header], Gallery] = EmbeddedGallery.create,
    reopen: Callable[[Path], Gallery] | None = None,
) -> None:
    """Embed a folder of shards into the gallery `out` in this process; see `build_with`."""
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
    """Embed a folder of shards into the gallery `out`, replacing an existing gallery.

    No other process may write the old gallery meanwhile. Its items that do not come from shards are
    kept.

    The build goes on in `.<name>.building` beside `out` (or inside it, if `out` cannot be renamed).
    The next call with the same bundle, shards, split and fields resumes it.

    Raises:
        BusyError: another process writes `out`, or builds it.
        UserError: `out` holds anything but a gallery or cannot be written, the shards' schema
            differs from the bundle's, the split is empty, an item id appears twice, a picture does
            not decode, the fields match no item, or items to keep were embedded by another bundle.
    """
    location = (
        str(shards.resolve()) if pictures is None else picture_location.parse_option(pictures)
    )
    require_replaceable(out)
    index = ShardIndex.read(shards)
    bundle.schema.require_same(index.schema, str(bundle.path), str(shards))
    total = count_items(index, split)
    source = f"{sha256_of_file(shards / INDEX_NAME)} {split}"
    if fields is not None:
        fields.require_overlap(index, split)
        source += f" {fields.hash} {fields.id_column} {' '.join(fields.names)}"
        embed = fields.with_fields(embed)
    building = workplace(out, "building")
    with writer_lock(out), _previous_gallery(out, bundle) as old:
        gallery = _resume(
            building, bundle, source, reopen or partial(EmbeddedGallery, writable=True)
        )
        if gallery is None:
            gallery = create(building, Header.of(bundle, "embedded", shards, source))
        with closing(gallery):
            _store(embed(index, split, len(gallery)), gallery, total)
            if old is not None:
                _copy_items(old, gallery, out)
            gallery.finish()
        replace(Header.read(building), pictures=location).write(building)
        _replace(out, building)


@contextmanager
def _previous_gallery(out: Path, bundle: Bundle) -> Generator[EmbeddedGallery | None]:
    """Open the gallery to be replaced, if it has items that must be kept; otherwise yield None.

    Raises:
        UserError: those items were embedded by another bundle, and their pictures are not
            available.
    """
    try:
        old = EmbeddedGallery(out)
    except (UserError, OSError):  # missing, in Milvus, or damaged
        yield None
        return
    with closing(old):
        stay = next(old.items_not_from_shards(), None)
        if stay and old.header.bundle != bundle.hash:
            raise UserError(
                f"{out}: holds items that do not come from shards, such as {stay[0].item_id!r}, "
                f"embedded by another bundle ({old.header.bundle}); build into another folder "
                "and add them there"
            )
        yield old if stay else None


def _copy_items(old: EmbeddedGallery, gallery: Gallery, out: Path) -> None:
    """Copy items that do not come from shards into the new gallery, unless it has their ids."""
    count = 0
    for items in old.items_not_from_shards():
        new = [item for item in items if not _has(gallery, item.item_id)]
        gallery.upsert(new)
        count += len(new)
    print(f"{out}: kept {count} items that do not come from shards", file=sys.stderr)


def _has(gallery: Gallery, item_id: str) -> bool:
    try:
        gallery.get(item_id)
    except ItemNotFoundError:
        return False
    return True


def require_replaceable(out: Path) -> None:
    """Check that `out` is new, empty or a gallery, and writable. Raises UserError."""
    whole = (out / GALLERY_NAME).exists()
    found = unexpected_entries(out, lambda name: whole or name.startswith(OURS))
    if found or out.is_file():
        raise UserError(
            f"{out}: expected a new folder or a gallery to replace, found "
            f"{repr(found[0]) if found else 'a file'}; name another folder"
        )
    require_writable(out)


def _replace(out: Path, made: Path) -> None:
    """Replace a gallery by a new one.

    Servers may still search a replaced Milvus collection, so it is dropped only when its successor
    is replaced as well.
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
            collection = old["replaced"]["collection"]
            print(f"warning: {collection} was not dropped: {error}", file=sys.stderr)


def _extra(folder: Path) -> Mapping[str, Any]:
    """Read the engine-specific fields of a gallery's header; empty if there is no header."""
    try:
        return Header.read(folder).extra
    except UserError:
        return {}


def _drop(extra: Mapping[str, Any]) -> None:
    from adde.serving.gallery.milvus_client import drop  # pymilvus is optional

    drop(extra["uri"], extra["collection"])


def _store(batches: Iterator[list[Item]], gallery: Gallery, total: int) -> None:
    done = len(gallery)
    bar = tqdm(total=total, initial=done, desc="embed gallery", unit="item", disable=None)
    with bar:
        for items in batches:
            gallery.upsert(items)
            done += len(items)
            if len(gallery) != done:
                raise UserError(
                    f"expected every item id once, found a duplicate among {items[0].item_id!r} to "
                    f"{items[-1].item_id!r}; build the shards again"
                )
            bar.update(len(items))


def _resume(
    building: Path, bundle: Bundle, source: str, reopen: Callable[[Path], Gallery]
) -> Gallery | None:
    """Reopen the interrupted build of the same bundle and source; remove any other."""
    if not building.exists():
        return None
    try:
        header = Header.read(building)
        if (header.bundle, header.source) == (bundle.hash, source):
            return reopen(building)
    except (BusyError, UnavailableError):
        raise  # the build may be resumed later
    except UserError:
        pass  # cannot be resumed
    with writer_lock(building):  # fails if another process writes it
        _discard(building)
    return None


def _discard(folder: Path) -> None:
    """Remove a gallery and its Milvus collection."""
    if "collection" in (extra := _extra(folder)):
        _drop(extra)
    shutil.rmtree(folder)
