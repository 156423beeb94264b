"""What is kept of every answer, from which tables can be made again.

The row's number, the method, the extracted answer, its verdict, the words of the thought, and the time. The questions
themselves are not in it. Further lines have a method's median time a question at a batch size, where it was measured.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from semcot_hf.storage import read_json_lines

KEPT = (
    "index", "extracted", "correct", "thought", "thought_right", "thought_ended", "implicit_tokens", "new_tokens",
    "route", "confidence",
)  # fmt: skip


def write_verdicts(report: Path, path: Path, others: Mapping[str, Path] | None = None) -> None:
    """Write what is kept of a folder of `semcot evaluate`: answers, also of files of `others` by method, and times."""
    summary = json.loads((report / "report.json").read_text())
    machine = "{cpu}, {threads} threads, {device}".format(**summary["environment"])
    files = {path.stem.removeprefix("predictions-"): path for path in sorted(report.glob("predictions-*.jsonl"))}
    with gzip.open(path, "wt") as file:
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
