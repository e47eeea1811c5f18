"""Texts as wide as the terminal that shows them; in a file they are Markdown, as they were made."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby, zip_longest

NARROWEST = 8
"""columns of a terminal that a cell keeps, however many there are"""


def say(text: str) -> None:
    """Prints a text, fitted to the terminal if there is one."""
    print(fitted(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


def fitted(text: str, columns: int) -> str:
    """A text in which paragraphs, and the cells of tables, are broken into lines that fit.

    Tables are those of ``report.table``. One with too many columns stays too wide.
    """
    parts: list[str] = []
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            parts += _table(list(lines), columns)
        else:
            for line in lines:
                parts += textwrap.wrap(
                    line, columns, break_long_words=False, break_on_hyphens=False
                ) or [""]
    return "\n".join(parts)


def _table(lines: list[str], columns: int) -> Iterator[str]:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[:1] + lines[2:]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = columns - 3 * len(widths) - 1
    while sum(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    for number, row in enumerate(rows):
        cells = [
            textwrap.wrap(cell, width, break_on_hyphens=False)
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*cells, fillvalue="") if any(cells) else [[""] * len(row)]:
            padded = (word.ljust(width) for word, width in zip(line, widths, strict=True))
            yield f"| {' | '.join(padded)} |"
        if number == 0:
            yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
