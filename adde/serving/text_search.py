"""What of an item can be found by words: its id, its known values, and its fields' texts.

Neither case nor accents make a difference, and a word also finds those that begin with it.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

TABLE = "CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(text, content='')"
TABLE_EXISTS = "SELECT 1 FROM sqlite_master WHERE name = 'texts'"
INSERT = "INSERT INTO texts (rowid, text) VALUES (?, ?)"
FIND = "SELECT rowid AS row FROM texts WHERE texts MATCH ? ORDER BY rank, rowid"
"""Rows of SQLite's FTS5, the best first; the parameter is what `to_fts` gives."""

WORD = re.compile(r"[^\W_]+")
MOST_WORDS = 20


def words(text: str) -> list[str]:
    """The words of a text, without case and accents."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    return WORD.findall("".join(c for c in letters if not unicodedata.combining(c)))


def searchable_text(item_id: str, facts: Mapping[str, Any]) -> str:
    """An item's words, each after a space; `facts` are what it can be filtered by."""
    told = (value for value in facts.values() if isinstance(value, str))
    return "".join(f" {word}" for word in words(" ".join([item_id, *told])))


def to_fts(text: str) -> str:
    """A query of all words, as FTS5 has it; empty where there is none."""
    return " ".join(f'"{word}"*' for word in words(text)[:MOST_WORDS])


def to_milvus(text: str, path: str) -> str:
    """The same as an expression about what `searchable_text` gave; empty where there is no word."""
    return " and ".join(f'{path} like "% {word}%"' for word in words(text)[:MOST_WORDS])
