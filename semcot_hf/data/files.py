"""Files of datasets and reports: written whole or not at all."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from .schema import COLUMNS


def write_text(path: Path, content: str) -> None:
    """Write a file that is either there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_lines(path: Path, rows: Iterable[Mapping]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows))


def write_splits(splits: Mapping[str, Iterable[Mapping]], folder: str | os.PathLike) -> None:
    """Write each split as `folder/<split>.jsonl`, which `load_reasoning_dataset(folder)` reads back.

    Args:
        splits: rows in the schema by the split's name; other columns are left out.
        folder: made when missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_lines(folder / f"{name}.jsonl", ({column: row[column] for column in COLUMNS} for row in rows))
