"""Tables of a report: as markdown, and printed on the terminal."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a markdown table.

    Args:
        header: names of the columns.
        rows: texts of the cells.
        right: names of the columns that are aligned on the right.

    >>> print(markdown_table(["method", "n"], [["a|b", "3"]], right=["n"]))
    | method | n |
    | --- | ---: |
    | a\\|b | 3 |
    """
    lines = [header, ["---:" if name in right else "---" for name in header], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def print_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Collection[str] = (),
    no_wrap: Collection[str] = (),
    *,
    title: str | None = None,
    styles: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> None:
    """Print a table on the terminal.

    Args:
        header, rows, right: as in `markdown_table`.
        no_wrap: names of the columns that are never wrapped.
        title: the line above it.
        styles: rich styles of cells, by their text.
        console: standard output by default.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in header:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=name in no_wrap)
    for row in rows:
        table.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    (console or Console()).print(table)
