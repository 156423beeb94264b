"""Tables of a report: as markdown, and printed on the terminal."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
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
    unbroken: bool = False,
) -> None:
    """Print a table on the terminal.

    Args:
        header, rows, right: as in `markdown_table`.
        no_wrap: names of the columns that are never wrapped.
        title: the line above it.
        styles: rich styles of cells, by their text.
        console: standard output by default.
        unbroken: whether columns that do not fit the width follow below, behind the first one again, instead of
            having their cells broken.
    """
    console, rows = console or Console(), list(rows)
    columns = [[row[index] for row in rows] for index in range(len(header))]
    parts = _fitting_columns(header, columns, console.width) if unbroken else [dict.fromkeys(range(len(header)))]
    for part in parts:
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for index, width in part.items():
            table.add_column(
                header[index],
                justify="right" if header[index] in right else "left",
                overflow="fold",
                no_wrap=header[index] in no_wrap,
                width=width,
            )
        for row in rows:
            table.add_row(*(Text(row[index], style=(styles or {}).get(row[index], "")) for index in part))
        console.print(table)
        title = None


def _fitting_columns(
    header: Sequence[str], columns: Sequence[Sequence[str]], limit: int
) -> list[dict[int, int | None]]:
    """Return the columns of each part of a table by their indices, with their widths in characters.

    Each part begins with the first column. A column's name is broken between words where there is no room for it. A
    column that does not fit beside the first one has no width, and its cells are broken.

    Args:
        header, columns: names and cells.
        limit: the width of the terminal.

    >>> names, cells = ["method", "95 % interval", "p"], [["SemCoT"], ["93.7–97.2"], ["0.01"]]
    >>> _fitting_columns(names, cells, 40), _fitting_columns(names, cells, 30)
    ([{0: 6, 1: 13, 2: 4}], [{0: 6, 1: 10, 2: 4}])
    >>> _fitting_columns(names, cells, 26), _fitting_columns(names, cells, 17)
    ([{0: 6, 1: 13}, {0: 6, 2: 4}], [{0: 6, 1: None}, {0: 6, 2: 4}])
    """

    def room(widths: Iterable[int]) -> int:
        # A space before the table, one on either side of each column, and one between two of them or behind the last.
        return limit - 1 - sum(width + 3 for width in widths)

    needed = [
        max(cell_len(text) for text in (*name.split(), *cells)) for name, cells in zip(header, columns, strict=True)
    ]
    parts: list[dict[int, int | None]] = []
    indices = list(range(1, len(header)))
    while indices or not parts:
        widths = {0: needed[0]}
        while indices and (len(widths) == 1 or room([*widths.values(), needed[indices[0]]]) >= 0):
            index = indices.pop(0)
            widths[index] = needed[index]
        for index in widths:
            widths[index] += max(0, min(cell_len(header[index]) - widths[index], room(widths.values())))
        fits = room(widths.values()) >= 0
        parts.append({index: width if fits or index == 0 else None for index, width in widths.items()})
    return parts
