"""Search items by words of their id, known values and text fields.

Case and accents are ignored; a word also matches longer words that begin with it.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, cast

TABLE = "CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(text, content='')"
TABLE_EXISTS = "SELECT 1 FROM sqlite_master WHERE name = 'texts'"
INSERT = "INSERT INTO texts (rowid, text) VALUES (?, ?)"
FIND = "SELECT rowid AS row FROM texts WHERE texts MATCH ? ORDER BY rank, rowid"
"""Rows by SQLite's FTS5, best first; the parameter comes from `to_fts`."""

WORD = re.compile(r"[^\W_]+")
MOST_WORDS = 20


def words(text: str) -> list[str]:
    """Split a text into words without case and accents."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    return WORD.findall("".join(c for c in letters if not unicodedata.combining(c)))


def searchable_text(item_id: str, facts: Mapping[str, Any]) -> str:
    """Return an item's words, each after a space; `facts` is what it can be filtered by."""
    text_values: list[str] = []
    for value in facts.values():
        if isinstance(value, list):
            text_values += cast(list[str], value)
        elif isinstance(value, str):
            text_values.append(value)
    return "".join(f" {word}" for word in words(" ".join([item_id, *text_values])))


def to_fts(text: str) -> str:
    """Return an FTS5 query for all words; empty if there are none."""
    return " ".join(f'"{word}"*' for word in words(text)[:MOST_WORDS])


def to_milvus(text: str, path: str) -> str:
    """Return a Milvus expression for all words over `searchable_text`; empty if there are none."""
    return " and ".join(f'{path} like "% {word}%"' for word in words(text)[:MOST_WORDS])
