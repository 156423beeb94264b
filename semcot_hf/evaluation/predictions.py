"""Folders of evaluations: which run they belong to, and the predictions of each method."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import Journal, as_json, check_same_run, read_json_lines, text_digest, write_json

RUN_FILE = "run.json"


def open_run(folder: Path, fingerprint: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make `folder` the folder of the run with this fingerprint, or continue that run there.

    Args:
        folder: created when missing.
        fingerprint: what decides the predictions.
        overwrite: whether to discard another run's predictions and reports.

    Raises:
        ValueError: when the folder belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run, present = folder / RUN_FILE, sorted(folder.glob("predictions-*.jsonl"))
    if overwrite:
        for old in [*present, folder / "report.json", folder / "report.md", *folder.glob("accuracy_*.png")]:
            old.unlink(missing_ok=True)
    elif run.exists() or present:
        try:
            found = json.loads(run.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            found = {}
        remedy = "Choose another folder, or pass overwrite=True to discard its predictions."
        check_same_run(found, fingerprint, place=f"output_dir={str(folder)!r}", remedy=remedy)
    write_json(run, fingerprint)


class Predictions:
    """The predictions of one method, stored batch by batch.

    The order of the batches is fixed by the questions, so that a killed run leaves the beginning of what it would have
    written. What follows the last complete batch is dropped and generated again.

    Args:
        path: the file of JSON lines; `None` keeps the records in memory only.
        batches: indices of the questions of each batch.
        run: the fingerprint of the run.

    Attributes:
        records: the predictions so far, in the order of the batches.
        batches: those that are still to do.
    """

    def __init__(self, path: Path | None, batches: Sequence[list[int]], run: Mapping[str, Any] | None = None):
        self.records: list[dict[str, Any]] = []
        self.batches = list(batches)
        self._journal = None if path is None else Journal(path, context=_context(path, run))
        if self._journal is None:
            return
        found = list(self._journal.read())
        while self.batches:
            part = found[len(self.records) : len(self.records) + len(self.batches[0])]
            if [record.get("index") for record in part] != self.batches[0]:
                break
            self.records += part
            del self.batches[0]
        self._journal.keep(len(self.records))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add the records of the next batch."""
        self.records += records
        if self._journal is not None:
            self._journal.append(*records)

    def close(self) -> None:
        """Close the file and let other processes write it."""
        if self._journal is not None:
            self._journal.close()

    def in_order(self) -> list[dict[str, Any]]:
        """Return all records in the order of the questions."""
        return sorted(self.records, key=lambda record: record["index"])


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the records of a finished method in the order of the questions.

    Raises:
        ValueError: for a damaged line, or one of another run than that of the folder.
    """
    try:
        run = json.loads((path.parent / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        run = None
    records = read_json_lines(path, None if run is None else _context(path, run))
    return sorted(records, key=lambda record: record["index"])


def _context(path: Path, run: Mapping[str, Any] | None) -> str:
    """Return what ties predictions to their run and method, so that those of another are noticed."""
    return text_digest([path.name, json.dumps(as_json(run), sort_keys=True)])
