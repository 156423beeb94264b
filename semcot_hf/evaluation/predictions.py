"""Evaluation folders: what run they belong to, predictions as they come, and files that are never half-written."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

RUN_FILE = "run.json"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either there as a whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: object) -> str:
    """Indented JSON with a line break at its end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def text_digest(texts: Iterable[object]) -> str:
    """Short hash of JSON-like values in their order.

    >>> text_digest(["a", [1, 2]]) == text_digest(["a", [1, 3]])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:16]


def weights_digest(model) -> str:
    """Short hash of a model's weights, from some hundred evenly spread numbers of each tensor.

    Training moves nearly all numbers, so that two checkpoints of one architecture are told apart in milliseconds.
    """
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        # Weights that accelerate has moved to disk are here in name only.
        if not weight.is_meta and weight.numel():
            flat = weight.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // 256)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def config_digest(model) -> str:
    """Short hash of a model's configuration and of its generation defaults."""
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    return text_digest([json.dumps([config, model.generation_config.to_dict()], sort_keys=True, default=str)])


def open_run(folder: Path, fingerprint: Mapping, *, overwrite: bool) -> None:
    """Make `folder` the place of the run with this fingerprint, or go on with it there.

    Args:
        folder: made when missing.
        fingerprint: what decides the predictions.
        overwrite: discards another run's predictions and reports.

    Raises:
        ValueError: when the folder belongs to another run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run, present = folder / RUN_FILE, sorted(folder.glob("predictions-*.jsonl"))
    found = None
    if run.exists():
        try:
            found = json.loads(run.read_text())
        except json.JSONDecodeError:
            found = {}
    elif present:
        found = {}
    if found is not None and found != dict(fingerprint) and not overwrite:
        names = sorted(name for name in {*found, *fingerprint} if found.get(name) != fingerprint.get(name))
        differences = ", ".join(f"{name}: {found.get(name)!r} there, {fingerprint.get(name)!r} now" for name in names)
        raise ValueError(
            f"output_dir={str(folder)!r} holds the predictions of another run ({differences}). Choose another folder, "
            "or pass overwrite=True to discard them."
        )
    if overwrite:
        for old in [
            *present,
            *(folder / name for name in ("report.json", "report.md")),
            *folder.glob("accuracy_*.png"),
        ]:
            old.unlink(missing_ok=True)
    write_atomically(run, to_json(dict(fingerprint)))


class Predictions:
    """The JSON lines of one method, appended batch by batch.

    Lines stand in the order of the batches, which is fixed by the questions: what a killed run left is a beginning of
    what it would have written. Whatever follows the last whole batch is dropped and made again.

    Args:
        path: the file; `None` keeps the lines in memory.
        batches: indices of the questions of each batch.
    """

    def __init__(self, path: Path | None, batches: Sequence[list[int]]):
        self.path, self.records = path, []
        self.done = 0
        if path is not None and path.exists():
            self._resume(batches)

    def _resume(self, batches):
        lines = self.path.read_bytes().splitlines(keepends=True)
        records, size = [], 0
        for batch in batches:
            part = [_parse(line) for line in lines[len(records) : len(records) + len(batch)]]
            if [record and record.get("index") for record in part] != list(batch):
                break
            records += part
            self.done += 1
        size = sum(len(line) for line in lines[: len(records)])
        if size < self.path.stat().st_size:
            with self.path.open("r+b") as file:
                file.truncate(size)
        self.records = records

    def append(self, records: Sequence[dict]) -> None:
        """Add the records of the next batch and hand them to the operating system."""
        self.records += records
        self.done += 1
        if self.path is not None:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)

    def in_order(self) -> list[dict]:
        """All records in the order of the questions."""
        return sorted(self.records, key=lambda record: record["index"])


def read_predictions(path: Path) -> list[dict]:
    """The records of a finished method, in the order of the questions."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return sorted((json.loads(line) for line in lines if line), key=lambda record: record["index"])


def _parse(line):
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
