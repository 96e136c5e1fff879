"""Tables for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Rows of text under headings, with sentences before and after.

    Attributes:
      head: sentences before.
      columns: the headings.
      rows: as many texts each.
      foot: sentences after.
    """

    head: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: tuple[str, ...]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [_line(row, widths) for row in (self.columns, *self.rows)]
        return "\n".join([*self.head, *lines, *self.foot])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in cells) + "</tr>"

        said = ["".join(f"<p>{html.escape(x)}</p>" for x in sentences) for sentences in (self.head, self.foot)]
        body = "".join(row(cells, "td") for cells in self.rows)
        return f"{said[0]}<table><thead>{row(self.columns, 'th')}</thead><tbody>{body}</tbody></table>{said[1]}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def label(address: Sequence[str], index: Sequence[int]) -> str:
    """How a row calls one element of a choice."""
    return "/".join(address) + (f"[{', '.join(map(str, index))}]" if index else "")


def number(x: float) -> str:
    """Four significant digits."""
    return f"{x:.4g}"
