"""What is kept of every answer, from which tables can be made again.

The row's number, the method, the extracted answer, its verdict, the words of the thought, and the time. The questions
themselves are not in it. Further lines have a method's median time a question at a batch size, where it was measured.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from semcot_hf.storage import read_json_lines

KEPT = (
    "index", "extracted", "correct", "thought", "thought_right", "thought_ended", "implicit_tokens", "new_tokens",
    "route", "confidence",
)  # fmt: skip

TRAINING = ("train_samples", "train_steps", "train_runtime", "total_flos", "resumed_at_step")

# Seconds a question: methods by batch size, each with its median and its machine.
Times = dict[int, dict[str, tuple[float, str]]]
# What a training took, where it is known.
Training = dict[str, float]
# Set, host, generator and variant; verdicts by method and question; times; the training.
Section = tuple[list[str], dict[str, dict[int, dict]], Times, Training]


def write_verdicts(
    report: Path, path: Path, others: Mapping[str, Path] | None = None, training: Path | None = None
) -> None:
    """Write what is kept of a folder of `semcot evaluate`: answers, also of files of `others` by method, and times.

    Of `training`, a file of `semcot distill`, the rows, steps, seconds and operations are kept.
    """
    summary = json.loads((report / "report.json").read_text())
    machine = "{cpu}, {threads} threads, {device}".format(**summary["environment"])
    files = {path.stem.removeprefix("predictions-"): path for path in sorted(report.glob("predictions-*.jsonl"))}
    with gzip.open(path, "wt") as file:
        if training is not None:
            results = json.loads(training.read_text())
            kept = {name: results[name] for name in TRAINING if name in results}
            file.write(json.dumps({"training": kept}) + "\n")
        for method, predictions in {**files, **(others or {})}.items():
            for row in sorted(read_json_lines(predictions), key=lambda row: row["index"]):
                kept = {name: row[name] for name in KEPT if row.get(name) is not None}
                if row.get("signals"):
                    kept["signals"] = {name: round(value, 6) for name, value in row["signals"].items()}
                file.write(json.dumps({"method": method, **kept, "seconds": round(row["seconds"], 3)}) + "\n")
        for method, sizes in (summary["latency"] or {"methods": {}})["methods"].items():
            for row in sizes:
                kept = {"batch_size": row["batch_size"], "median": round(row["median"], 3), "batches": row["n"]}
                file.write(json.dumps({"method": method, **kept, "machine": machine}) + "\n")


def read(path: Path) -> dict[str, dict[int, dict]]:
    """Return verdicts by method and number of the question."""
    rows: dict[str, dict[int, dict]] = {}
    for row in _lines(path):
        if "index" in row:
            rows.setdefault(row["method"], {})[row["index"]] = row
    return rows


def read_times(path: Path) -> Times:
    """Return the times that were measured."""
    times: Times = {}
    for row in _lines(path):
        if "batch_size" in row:
            times.setdefault(row["batch_size"], {})[row["method"]] = (row["median"], row["machine"])
    return times


def read_training(path: Path) -> Training:
    """Return what the training took, where it is known."""
    return next((row["training"] for row in _lines(path) if "training" in row), {})


def _lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def read_sections(paths: Iterable[str]) -> Iterator[Section]:
    """Yield what is known of each file of a pair; verdicts and times of its host alone are added to its own."""
    for path in map(Path, paths):
        parts = path.name.removesuffix(".jsonl.gz").split("--")
        if len(parts) < 3:
            continue
        host = path.with_name("--".join(parts[:2]) + ".jsonl.gz")
        found = [file for file in (host, path) if file.is_file()]
        times: Times = {}
        for file in found:
            for size, measured in read_times(file).items():
                times.setdefault(size, {}).update(measured)
        verdicts = {method: rows for file in found for method, rows in read(file).items()}
        yield parts, verdicts, times, read_training(path)
