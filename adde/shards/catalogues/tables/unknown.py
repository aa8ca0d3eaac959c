"""Words in a table that mean an unknown value."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from adde.errors import UserError, did_you_mean
from adde.shards.catalogues.tables.table import Table

WORDS = ("NaN", "NA", "N/A", "#N/A", "<NA>", "null", "\\N")
"""Default words, in any case: those of pandas, R, Excel and databases."""

DOUBTFUL = {"none", "nil", "unknown", "undefined", "missing", "unspecified", "tbd", "n.a.", "-"} | {
    *("--", "?", ".", "-1", "-1.0", "not available", "not applicable", "not specified"),
    *("keine angabe", "k.a.", "#ref!", "#value!", "#name?", "#div/0!"),
}
"""Words that may mean unknown or may be values: "none" is a pattern in some tables."""


def blank_unknown(
    table: Table, words: Sequence[str], keep: Collection[str | None] = ()
) -> tuple[Table, list[str]]:
    """Return the table with "" in every unknown cell, and notices about these cells.

    Args:
        table: N rows.
        words: Words for all columns, in any case, or COLUMN=WORD for one. If there are only the
            latter, WORDS apply to all columns.
        keep: Columns that stay unchanged: ids, file names.

    Raises:
        UserError: A named column does not exist.
    """
    of_all = {word.casefold() for word in words if "=" not in word}
    if words and not of_all:
        of_all = {word.casefold() for word in WORDS}
    of_column = _of_columns(table, words)
    columns, notices = dict(table.columns), list[str]()
    for name, cells in table.columns.items():
        if name in keep and name not in of_column:
            continue
        unknown = of_all | of_column.get(name, set())
        found = {cell for cell in set(cells) if cell and cell.casefold() in unknown}
        if found:
            counts = Counter(cell for cell in cells if cell in found)
            shown = ", ".join(f"{cell!r} ({count} rows)" for cell, count in counts.most_common())
            notices.append(f"column {name!r}: unknown, as --unknown says: {shown}")
            columns[name] = tuple("" if cell in found else cell for cell in cells)
    return replace(table, columns=columns), notices


def doubtful(values: Iterable[str]) -> list[str]:
    """Return the values that may mean unknown."""
    return [value for value in values if value.casefold() in DOUBTFUL]


def _of_columns(table: Table, words: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for word in words:
        if "=" not in word:
            continue
        # Column names may contain "=", so the longest match wins.
        names = [name for name in table.columns if word.startswith(f"{name}=")]
        if not names:
            name = word.split("=")[0]
            raise UserError(
                f"--unknown: {word!r}: {table.path} has no column {name!r}; "
                f"{did_you_mean(name, table.columns)}"
            )
        name = max(names, key=len)
        found.setdefault(name, set()).add(word[len(name) + 1 :].casefold())
    return found
