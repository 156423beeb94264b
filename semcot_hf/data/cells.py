"""JSON and CSV files, read with text and numbers as they are written."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import Dataset, Features, Value

# CSV has no types: a column of these alone is one of truth values, as JSON's true and false are.
_TRUTH = {"true": True, "false": False}
_SOLID = re.compile(r"\S")


def read_cells(files: list[str], reader: str, code: str) -> Dataset:
    """Read JSON or CSV with every cell as JSON text: Arrow would infer types, and alter dates and large numbers.

    Args:
        reader: "json" (a list of rows, or lines) or "csv".
        code: what the result depends on beside the files, for the key of the cache.

    Raises:
        ValueError: for a file that cannot be read so, or holds no row.
    """
    columns: dict[str, None] = {}
    texts: set[str] = set()
    for file in files:
        empty = True
        try:
            for row in _ROWS[reader](file):
                columns.update(dict.fromkeys(row))
                texts.update(column for column, cell in row.items() if str(cell).lower() not in (*_TRUTH, ""))
                empty = False
        except (ValueError, csv.Error) as error:
            raise ValueError(f"name_or_path: {file} cannot be read as {reader}: {error}.") from error
        if empty:
            raise no_row(file)
    # A changed file has another key.
    stamps = tuple((os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files)
    return Dataset.from_generator(
        _cells,
        features=Features({column: Value("string") for column in columns}),
        gen_kwargs={
            "files": tuple(files),
            "reader": reader,
            "columns": tuple(columns),
            "truths": tuple(column for column in columns if reader == "csv" and column not in texts),
            "key": (stamps, code),
        },
    )


def _cells(
    files: tuple[str, ...], reader: str, columns: tuple[str, ...], truths: tuple[str, ...], key: tuple
) -> Iterator[dict]:
    for file in files:
        for row in _ROWS[reader](file):
            row = {column: _TRUTH.get(cell.lower()) if column in truths else cell for column, cell in row.items()}
            yield {column: json.dumps(row.get(column)) for column in columns}


def _json_rows(file: str) -> Iterator[dict]:
    """Yield the objects of one list, or of lines; numbers stay as they are written."""
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda name: None)
    text = Path(file).read_text(encoding="utf-8-sig")
    end = 0
    while start := _SOLID.search(text, end):
        value, end = decoder.raw_decode(text, start.start())
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise ValueError(f"{str(row)[:80]!r} is no row; write each row as an object of its columns")
            yield row


def _csv_rows(file: str) -> Iterator[dict]:
    csv.field_size_limit(2**31 - 1)  # By default a text beyond 128 KiB is an error.
    with open(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        rows = (cells for cells in reader if len(cells) > 1 or "".join(cells).strip())
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise ValueError(f"two of its columns {', '.join(names)} have one name; rename one")
        for cells in rows:
            if len(cells) > len(names):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} cells for {len(names)} columns; quote text with commas"
                )
            yield dict(zip(names, cells, strict=False))


def decoded(row: Mapping) -> dict:
    """The row that `read_cells` wrote as JSON texts."""
    return {column: json.loads(cell) for column, cell in row.items()}


def no_row(file: str) -> ValueError:
    """The error for a file without rows."""
    return ValueError(f"name_or_path: {file} holds no row. Write rows into it, or take it away.")


_ROWS = {"json": _json_rows, "csv": _csv_rows}
