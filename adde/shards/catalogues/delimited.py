"""Text tables as spreadsheets and shop systems write them: CSV and its relatives, record by record.

Understood: UTF-8 with or without a byte order mark, UTF-16 with one; a comma, semicolon, tab or
bar between cells, found by which of them makes rows as long as the header, or said by Excel's first
line `sep=;`; quoted ends of lines; spaces around cells; Excel's ="007"; lines that end in CR LF.
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
"""The first of those that fit equally well is taken."""

SAMPLE = 100
"""Lines that the separator is found in."""

LONGEST_CELL = 1 << 24
"""Characters: above any page of HTML, and as far as a quote that is never closed is followed."""

SEP_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)

FORMULA = re.compile(r'="([^"]*)"')
"""How exports keep Excel from reading 007 as a number."""


@dataclass(frozen=True)
class Record:
    """One row of the file; a blank one is left out."""

    first: int
    """Number of its first line, from 1."""
    last: int
    cells: list[str]
    fault: str = ""
    """What is wrong where the line is no CSV."""


def read_records(path: Path) -> Iterator[Record]:
    """Records of a file, the header first.

    A line that is no CSV is a record with a fault, and reading goes on at the next line.

    Raises:
        UserError: it is no text; see `open_text`.
    """
    csv.field_size_limit(LONGEST_CELL)
    # Line by line: the text of a large table would be held beside its cells.
    with open_text(path, newline="") as file:
        separator, skipped = _separator(file)
        yield from _records(_Lines(islice(file, skipped, None), skipped), separator)


class _Lines:
    """Lines of a file, some of which are read again."""

    def __init__(self, lines: Iterator[str], number: int) -> None:
        self._lines, self._again = lines, deque[str]()
        self.number = number
        """Of the line handed out last."""
        self.taken: list[str] = []
        """Those handed out since the record began."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def again(self) -> None:
        """Hands out all lines of the record but its first once more."""
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
    # strict: a quote left open would otherwise swallow the rest of the file in silence.
    return csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)


def _separator(file: TextIO) -> tuple[str, int]:
    """What separates cells, and how many lines stand before the header; from the file's start."""
    sample = list(islice(file, SAMPLE))
    file.seek(0)
    if sample and (said := SEP_LINE.fullmatch(sample[0])):
        return said[1], 1
    return max(SEPARATORS, key=lambda separator: _fit(sample, separator)), 0


def _fit(sample: list[str], separator: str) -> tuple[float, int]:
    """Share of rows as long as the first, and its length; of rows of one cell nothing."""
    records = _records(_Lines(iter(sample), 0), separator)
    # A quote that another separator makes sense of is no row of this one.
    widths = [0 if record.fault else len(record.cells) for record in records]
    if not widths or widths[0] < 2:
        return 0.0, 0
    return widths.count(widths[0]) / len(widths), widths[0]
