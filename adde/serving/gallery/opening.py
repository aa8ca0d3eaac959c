"""Open a gallery of either engine, or the cached one of a folder of shards."""

import atexit
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import cache_folder, sha256_of_file
from adde.serving.gallery.base import GALLERY_NAME, Gallery, Header, Split
from adde.serving.onnx.session import Session
from adde.shards.index import INDEX_NAME

MAX_CACHED = 10
"""Maximum cached galleries of folders of shards; the least recently opened are removed first."""


def open_gallery(folder: Path, bundle: Bundle, writable: bool = False) -> Gallery:
    """Open a gallery of either engine. Raises UserError if another bundle embedded it."""
    header = Header.read(folder)
    header.require_bundle(bundle, folder)
    # Each engine brings libraries of its own: import the one that is used.
    if header.engine == "milvus":
        from adde.serving.gallery.milvus import MilvusGallery

        return MilvusGallery(folder)
    from adde.serving.gallery.embedded import EmbeddedGallery

    return EmbeddedGallery(folder, writable)


def open_or_build(bundle: Bundle, session: Session, folder: Path, split: Split = "all") -> Gallery:
    """Open a gallery, or embed a folder of shards once and open the cached gallery."""
    if (folder / GALLERY_NAME).exists():
        return open_gallery(folder, bundle)
    key = f"{bundle.hash} {sha256_of_index(folder)} {folder.resolve()} {split}"
    kept = cache_folder() / f"gallery-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    if (opened := _open_cached(kept, bundle)) is not None:
        return opened
    with ExitStack() as locked:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            # The first process embeds; others wait for it.
            lock = locked.enter_context((kept.parent / f".{kept.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (opened := _open_cached(kept, bundle)) is not None:
                return opened
            _evict(kept.parent)
        except OSError as error:
            # Caching is optional: warn and continue.
            message = f"warning: {kept}: the gallery is not cached: {error}"
            print(message, file=sys.stderr)
            temporary = tempfile.TemporaryDirectory(prefix="adde-gallery-")
            atexit.register(temporary.cleanup)
            kept = Path(temporary.name) / "gallery"
        from adde.serving.gallery.build import build_gallery  # serving a gallery needs no builder

        build_gallery(bundle, session, folder, kept, split)
        return open_gallery(kept, bundle)


def _open_cached(kept: Path, bundle: Bundle) -> Gallery | None:
    """Open a cached gallery and mark it as used; None if it is missing or damaged."""
    try:
        opened = open_gallery(kept, bundle)
        now = time.time_ns()  # the kernel's own timestamp has a resolution of milliseconds
        os.utime(kept, ns=(now, now))
        return opened
    except (UserError, OSError):
        return None


def _evict(cache: Path) -> None:
    """Remove the least recently used cached galleries; processes that have one open keep it."""
    opened: list[tuple[float, Path]] = []
    for folder in cache.glob("gallery-*"):
        with suppress(FileNotFoundError):  # removed by another process
            opened.append((folder.stat().st_mtime, folder))
    for _, folder in sorted(opened)[: max(0, len(opened) - MAX_CACHED + 1)]:
        shutil.rmtree(folder, ignore_errors=True)


def sha256_of_index(folder: Path) -> str:
    """Hash the index of a folder of shards. Raises UserError if it has none."""
    if not (folder / INDEX_NAME).exists():
        raise UserError(
            f"{folder}: expected a gallery ({GALLERY_NAME}) or a folder of shards ({INDEX_NAME}), "
            "found neither"
        )
    return sha256_of_file(folder / INDEX_NAME)
