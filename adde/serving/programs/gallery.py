"""Embeds a folder of shards into a gallery; started again, it goes on where it was.

Examples: serve_onnx/build_gallery.py.
"""

import json
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from adde.bundle import Bundle
from adde.errors import UserError, run_program
from adde.serving.gallery.build import build_with
from adde.serving.gallery.embedded import EXACT_ITEMS, EmbeddedGallery
from adde.serving.gallery.embedding import Split, embed_here
from adde.serving.gallery.embedding_ray import on_ray
from adde.serving.gallery.field_table import FieldTable
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.shards.catalogues.unknown import WORDS


def build(
    bundle: Path,
    catalogue: Path,
    out: Path,
    split: Split = "all",
    engine: Literal["embedded", "milvus"] = "embedded",
    engine_embed: Literal["here", "ray"] = "here",
    uri: str | None = None,
    fields: Path | None = None,
    id_column: str | None = None,
    field_columns: tuple[str, ...] = (),
    unknown: tuple[str, ...] = WORDS,
    decimal_comma: tuple[str, ...] = (),
    skip_unreadable: bool = False,
    pictures: str | None = None,
    exact_items: int = EXACT_ITEMS,
    device: tuple[Device, ...] = ("cpu",),
    allow_fallback: bool = False,
) -> None:
    """Embeds every item of a catalogue and prints what the gallery holds.

    Args:
        bundle: folder of the bundle.
        catalogue: folder of shards.
        out: folder of the gallery. One that is there is replaced; items that were put into it and
            are from no shards stay.
        split: which part of the shards.
        engine: where vectors lie: in the folder, or in Milvus.
        engine_embed: this process, or Ray Data with an actor per GPU, or per core for the CPU, on
            the cluster that RAY_ADDRESS names or one started here.
        uri: Milvus' address or a file of Milvus Lite; a token is read from MILVUS_TOKEN.
        fields: a CSV or Parquet table of what answers are filtered by: price, brand, stock.
        id_column: its column of item ids.
        field_columns: its columns that are taken; all but attributes and ids if not given.
        unknown: words, in any case, that say like an empty cell that a field is not known;
            COLUMN=WORD says it of one column alone, beside the words of all.
        decimal_comma: its columns in which 1.045,90 is a number, and not 1,045.90.
        skip_unreadable: leave out its rows that cannot be read or have no id of their own.
        pictures: where a server finds the items' pictures, if not in the catalogue as seen from the
            gallery: a folder, or an address as https://cdn.example/{item_id}.jpg.
        exact_items: up to so many a search looks at each; among more, at those that an index
            finds. Of the embedded engine: Milvus has an index of its own.
        device: where onnxruntime runs, in the order of preference.
        allow_fallback: go on where a device is not to be had.
    """
    if (engine == "milvus") != (uri is not None):
        raise UserError("expected --uri with --engine milvus, and not without")
    if (fields is None) != (id_column is None) or (field_columns and fields is None):
        raise UserError(
            "expected --fields and --id-column together, and --field-columns only with them"
        )
    opened = Bundle.read(bundle)
    table = None
    if fields is not None and id_column is not None:
        table = FieldTable(
            *(fields, id_column, field_columns, opened.schema),
            *(unknown, decimal_comma, skip_unreadable),
        )
        for notice in table.notices:
            print(notice)
    if engine_embed == "ray":
        embed = on_ray(opened, device, allow_fallback)
    else:
        embed = partial(embed_here, opened, Session(opened, device, allow_fallback))
    if uri is None:
        create = partial(EmbeddedGallery.create, exact_items=exact_items)
        reopen = partial(EmbeddedGallery, writable=True, exact_items=exact_items)
    else:
        from adde.serving.gallery.milvus import MilvusGallery  # of the extra `milvus`

        create, reopen = MilvusGallery.creator(uri), MilvusGallery
    build_with(embed, opened, catalogue, out, split, create, reopen, table, pictures)
    gallery = open_gallery(out, opened)
    print(f"{out}: {len(gallery)} items, engine {gallery.header.engine}")
    if table is not None:
        print(
            f"fields {', '.join(table.names)} of {fields}; of the items embedded now it lacks "
            f"{table.unmatched}"
        )
    if isinstance(gallery, EmbeddedGallery) and gallery.index is not None:
        print(json.dumps(gallery.index.report, indent=2))
    gallery.close()


def main() -> None:
    """Runs the command line's words."""
    run_program(lambda: tyro.cli(build))
