"""Words that say in a table that something is not known."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from adde.errors import UserError, did_you_mean
from adde.shards.catalogues.table import Table

WORDS = ("NaN", "NA", "N/A", "#N/A", "<NA>", "null", "\\N")
"""In any case: what pandas, R, Excel and databases write."""

DOUBTFUL = {"none", "nil", "unknown", "undefined", "missing", "unspecified", "tbd", "n.a.", "-"} | {
    *("--", "?", ".", "-1", "-1.0", "not available", "not applicable", "not specified"),
    *("keine angabe", "k.a.", "#ref!", "#value!", "#name?", "#div/0!"),
}
"""Values that may mean that nothing is known, or a value as any other: no pattern is a pattern."""


def blank_unknown(
    table: Table, said: Sequence[str], keep: Collection[str | None] = ()
) -> tuple[Table, list[str]]:
    """The table with "" for every cell that says that it is unknown, and what to tell of it.

    Args:
        table: N rows.
        said: words, in any case, of all columns; or COLUMN=WORD of one. Where there are only such,
            WORDS are the words of all.
        keep: columns left as they are: ids, names of files.

    Raises:
        UserError: a column that is said is none.
    """
    of_all = {word.casefold() for word in said if "=" not in word}
    if said and not of_all:
        of_all = {word.casefold() for word in WORDS}
    of_column = _of_columns(table, said)
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
    """Those values that may say that nothing is known."""
    return [value for value in values if value.casefold() in DOUBTFUL]


def _of_columns(table: Table, said: Sequence[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for word in said:
        if "=" not in word:
            continue
        # The longest column that it begins with: names may hold the sign too.
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
