"""Read CSV and its relatives, as spreadsheets and shop systems write them, record by record.

The encoding is UTF-8 with or without a byte order mark, or UTF-16 with one. The separator is a
comma, semicolon, tab or bar: the one that gives most rows the length of the header, or the one in
Excel's first line `sep=;`. Cells may contain quoted line ends, have spaces around them, or be
Excel's ="007". Lines may end in CR LF.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from adde.files import open_text

SEPARATORS = ",;\t|"
"""Candidates; among equally good ones the first wins."""

SAMPLE = 100
"""Lines from which the separator is inferred."""

LONGEST_CELL = 1 << 24
"""Characters: more than any HTML page has, and the limit for an unclosed quote."""

SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)

FORMULA = re.compile(r'="([^"]*)"')
"""Exports write this to keep Excel from reading 007 as a number."""


@dataclass(frozen=True)
class Record:
    """One non-blank row of the file."""

    first: int
    """Number of its first line, from 1."""
    last: int
    cells: list[str]
    fault: str = ""
    """Why the line is not valid CSV, or empty."""


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, the header first.

    A line that is not valid CSV becomes a record with a fault, and reading continues at the next.

    Raises:
        UserError: The file is not text; see `open_text`.
    """
    csv.field_size_limit(LONGEST_CELL)
    # Read line by line, so that a large table's text is not held in addition to its cells.
    with open_text(path, newline="") as file:
        separator, skipped = _separator(file)
        yield from _records(_Lines(islice(file, skipped, None), skipped), separator)


class _Lines:
    """Lines of a file that can be read again."""

    def __init__(self, lines: Iterator[str], number: int) -> None:
        self._lines, self._again = lines, deque[str]()
        self.number = number
        """Number of the last line returned."""
        self.taken: list[str] = []
        """Lines returned since the record began."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def again(self) -> None:
        """Return the lines of the record once more, except its first."""
        self._again.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def _records(lines: _Lines, separator: str) -> Iterator[Record]:
    reader = _reader(lines, separator)
    space = re.compile(rf'" +(?={re.escape(separator)}|\s*$)')
    while True:
        lines.taken, first = [], lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = lines.taken[0]
            lines.again()
            try:
                cells = next(_reader(iter([space.sub('"', line)]), separator))
            except csv.Error:
                yield Record(first, first, [], str(error))
                continue
        if any(map(str.strip, cells)):
            cells = [_unformula(cell) if '="' in cell else cell for cell in cells]
            yield Record(first, lines.number, cells)


def _unformula(cell: str) -> str:
    match = FORMULA.fullmatch(cell.strip())
    return match[1] if match else cell


def _reader(lines: Iterator[str], separator: str) -> Iterator[list[str]]:
    # strict: otherwise an unclosed quote would silently swallow the rest of the file.
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)


def _separator(file: TextIO) -> tuple[str, int]:
    """Return the separator and the number of lines before the header; rewind the file."""
    sample = list(islice(file, SAMPLE))
    file.seek(0)
    if sample and (match := SEP_LINE.fullmatch(sample[0])):
        return match[1], 1
    return max(SEPARATORS, key=lambda separator: _fit(sample, separator)), 0


def _fit(sample: list[str], separator: str) -> tuple[float, int]:
    """Return the share of rows as long as the first, and its length; zero for rows of one cell."""
    records = _records(_Lines(iter(sample), 0), separator)
    # A line with a fault may be valid with another separator.
    widths = [0 if record.fault else len(record.cells) for record in records]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return widths.count(widths[0]) / len(widths), widths[0]
