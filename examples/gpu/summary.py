"""The report of the runs on a GPU."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

import report
from verdicts import read, read_times, read_training


def summary(state: dict, output: Path) -> str:
    """Return the report of what is there."""
    note = " These are no figures of models: they only show that all steps run." if state["scale"] == "tiny" else ""
    lines = ["# Runs on a GPU", "", f"Scale: {state['scale']}. Device: {state['device']}.{note}", ""]
    lines += [f"- {step}: {seconds} s" for step, seconds in state["seconds"].items()]
    for step in ("words", "paper"):
        if (path := output / step / "verdicts.jsonl.gz").is_file():
            lines += ["", f"## {step}", "", report.table(read(path), read_times(path))]
            training = read_training(path)
            lines += ["", report.budget(training)] if training else []
    if (path := output / "latency.json").is_file():
        lines += ["", "## Seconds a question", "", "| model | method | batch | median |", "|---|---|---|---|"]
        cells = ("model", "method", "batch_size")
        lines += [
            f"| {' | '.join(str(row[name]) for name in cells)} | {row['median']:.4f} |"
            for row in json.loads(path.read_text())["rows"]
        ]
    if (path := output / "speed" / "report.md").is_file():
        lines += ["", "Shapes of a 7B host: [speed/report.md](speed/report.md)."]
    return "\n".join(lines) + "\n"
