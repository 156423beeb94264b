"""Data files: found by split, and read with texts and numbers exactly as written."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import datasets
from datasets import Dataset, Features, Value

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
    "eval": ("eval", "evaluation"),
}
# CSV has no types: a column with these values alone is boolean, as JSON's true and false are.
_TRUTH = {"true": True, "false": False}
_SOLID = re.compile(r"\S")


def split_named(text: str) -> str | None:
    """Return the split that a name contains, `None` without one.

    >>> split_named("my-dev_42"), split_named("eval_42"), split_named("latest")
    ('validation', 'eval', None)
    """
    words = re.split(r"[^a-z]+", text.lower())
    return next((split for split, names in _SPLIT_WORDS.items() if any(word in names for word in words)), None)


def split_files(folder: Path) -> list[Path]:
    """Return the files of `folder` that are read as splits."""
    saved = [file for file in (folder / "dataset_dict.json", folder / "dataset_info.json") if file.exists()]
    return saved or [file for file in _data_files(folder) if split_named(file.stem)]


def _data_files(folder: Path) -> list[Path]:
    files = sorted([*folder.glob("*"), *folder.glob("data/*")])
    return [file for file in files if file.suffix in READERS and not file.name.startswith(".")]


def files_by_split(path: Path) -> list[tuple[str, str, list[str]]]:
    """Return (split, reader, files) for one file or for the data files of a folder."""
    files = [path] if path.is_file() else _data_files(path)
    files = [file for file in files if file.suffix in READERS]
    if not files:
        raise ValueError(f"name_or_path={str(path)!r} has no data file: need one of {', '.join(READERS)}.")
    named = [(split, file) for file in files if (split := split_named(file.stem))]
    groups: dict[tuple[str, str], list[str]] = {}
    for split, file in named or [("train", file) for file in files]:
        groups.setdefault((split, READERS[file.suffix]), []).append(str(file))
    return [(split, reader, group) for (split, reader), group in groups.items()]


def read_files(files: list[str], reader: str, code: str) -> Dataset:
    """Read files of one kind; `ADAPTERS[reader]` turns each row into columns.

    JSON and CSV are read with every cell as JSON text: Arrow would infer types, and change dates and large numbers.

    Args:
        files: their paths.
        reader: "json" (a list of rows, or lines), "csv", "parquet" or "text".
        code: what the result depends on beside the files, for the key of the cache.

    Raises:
        ValueError: for a file that cannot be read, or has no rows.
    """
    if reader in ("json", "csv"):
        return _read_cells(files, reader, code)
    for file in files if reader == "text" else []:
        with open(file, encoding="utf-8", errors="replace") as lines:
            if not any(line.strip() for line in lines):
                raise _no_row(file)
    try:
        rows = datasets.load_dataset(reader, data_files=files, split="train")
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"name_or_path: {', '.join(files)} cannot be read as {reader}: {error.__cause__}.") from error
    return rows.filter(lambda text: bool(text.strip()), input_columns="text") if reader == "text" else rows


def _text_line(row: Mapping) -> dict:
    question, mark, rest = row["text"].partition("||")
    if not mark or "####" not in rest:
        raise ValueError(f"the text line {row['text']!r} is not of the form 'question||reasoning #### answer'.")
    return {"query": question, "answer": rest}


def decoded(row: Mapping) -> dict:
    """Decode a row whose cells are JSON texts."""
    return {column: json.loads(cell) for column, cell in row.items()}


def _no_row(file: str) -> ValueError:
    """Return the error for a file without rows."""
    return ValueError(f"name_or_path: {file} holds no row. Write rows into it, or take it away.")


def _read_cells(files: list[str], reader: str, code: str) -> Dataset:
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
            raise _no_row(file)
    # A changed file has another cache key.
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
    """Yield the objects of a list, or of lines; numbers are kept as written."""
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


_ROWS = {"json": _json_rows, "csv": _csv_rows}
ADAPTERS = {"json": decoded, "csv": decoded, "text": _text_line}
