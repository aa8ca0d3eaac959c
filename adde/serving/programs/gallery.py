"""Embed a folder of shards into a gallery; an interrupted run resumes.

Examples: serve_onnx/build_gallery.py.
"""

import json
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from adde.bundle import Bundle
from adde.errors import UserError, run_program
from adde.serving.gallery.base import Split
from adde.serving.gallery.build import build_with
from adde.serving.gallery.embedded import EXACT_ITEMS, EmbeddedGallery
from adde.serving.gallery.embedding import embed_here
from adde.serving.gallery.embedding_ray import on_ray
from adde.serving.gallery.field_table import FieldTable
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.shards.catalogues.tables.unknown import WORDS


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
    """Embed every item of a catalogue and print a summary of the gallery.

    Args:
        bundle: folder of the bundle.
        catalogue: folder of shards.
        out: folder of the gallery. An existing gallery is replaced; its items that do not come from
            shards are kept.
        split: split to embed.
        engine: where to store vectors: in the folder, or in Milvus.
        engine_embed: embed in this process, or with Ray Data on the cluster of RAY_ADDRESS (or one
            started here), with an actor per GPU, or per core for the CPU.
        uri: Milvus' address, or a file of Milvus Lite; the token is read from MILVUS_TOKEN.
        fields: a CSV or Parquet table with fields to filter by: price, brand, stock.
        id_column: the table's column of item ids.
        field_columns: the table's columns to use; default: all but attributes and ids.
        unknown: words, in any case, that mean "not known", like an empty cell; COLUMN=WORD adds a
            word for one column.
        decimal_comma: columns in which 1.045,90 is a number and 1,045.90 is not.
        skip_unreadable: skip rows that cannot be read or have no unique id.
        pictures: where a server finds the items' pictures, if not in the catalogue's folder:
            another folder, or a URL such as https://cdn.example/{item_id}.jpg.
        exact_items: search up to so many items exactly, more with an index. For the embedded engine
            only; Milvus has its own index.
        device: onnxruntime devices, in order of preference.
        allow_fallback: continue if a device is unavailable.
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
        from adde.serving.gallery.milvus import MilvusGallery  # pymilvus is optional

        create, reopen = MilvusGallery.creator(uri), MilvusGallery
    build_with(embed, opened, catalogue, out, split, create, reopen, table, pictures)
    gallery = open_gallery(out, opened)
    print(f"{out}: {len(gallery)} items, engine {gallery.header.engine}")
    if table is not None:
        print(
            f"fields {', '.join(table.names)} of {fields}; items embedded now without a row: "
            f"{table.unmatched}"
        )
    if isinstance(gallery, EmbeddedGallery) and gallery.index is not None:
        print(json.dumps(gallery.index.report, indent=2))
    gallery.close()


def main() -> None:
    """Run the command line."""
    run_program(lambda: tyro.cli(build))
