"""`semcot data check`: the faults of a dataset as a table, an exit code, and a cleaned copy on request."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from ..data import DataReport, check_dataset, clean_dataset
from ..data.loading import write_splits
from ..storage import write_atomically, write_json
from .arguments import DataArguments, load_splits, parse

_USAGE = "usage: semcot data check --dataset NAME_OR_PATH [flags]; semcot data check --help explains them."
_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}


@dataclass
class CheckArguments:
    """What is checked, and what is written."""

    answer_type: str | None = field(
        default=None,
        metadata={"help": "Answer type: numeric, choice, yes_no or sequence; inferred when left out."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Id or folder of the tokenizer that lengths are measured with."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of the context; the tokenizer's own limit when left out."}
    )
    max_condensed_words: int = field(
        default=10, metadata={"help": "Words from which condensed reasoning is too long."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for report.md and report.json."})
    clean: str | None = field(
        default=None,
        metadata={"help": "New folder for a copy (a JSONL file a split) without faulty or repeated training rows."},
    )


def run(argv):
    """Run `semcot data check`; returns 1 when the dataset has errors."""
    if argv[:1] != ["check"]:
        print(_USAGE, file=sys.stdout if argv[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    data, args = parse("semcot data check", (DataArguments, CheckArguments), argv[1:])
    if args.max_length is not None and args.tokenizer is None:
        raise ValueError(
            f"max_length={args.max_length} needs a tokenizer to count with: add --tokenizer ID_OR_FOLDER."
        )
    if args.clean and Path(args.clean).exists():
        raise ValueError(f"clean={args.clean!r} exists already: name a new folder for the cleaned copy.")
    splits = load_splits(data)
    report = check_dataset(
        splits,
        answer_type=args.answer_type,
        tokenizer=AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else None,
        max_length=args.max_length,
        max_condensed_words=args.max_condensed_words,
    )
    _print(report, data.dataset)
    if args.output_dir:
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "report.md", f"# Check of {data.dataset}\n\n{report.to_markdown()}")
        write_json(folder / "report.json", {"dataset": data.dataset, **report.to_json()})
        print(f"report.md and report.json are in {folder}.")
    if args.clean:
        cleaned = clean_dataset(splits, report)
        write_splits(cleaned, args.clean)
        sizes = ", ".join(f"{name} {len(rows)} of {len(splits[name])}" for name, rows in cleaned.items())
        print(f"The cleaned copy is in {args.clean}: {sizes} rows.")
    return 1 if report.has_errors else 0


def _print(report: DataReport, name: str):
    console = Console()
    sizes = ", ".join(f"{split} {size:,}" for split, size in report.sizes.items())
    console.print(f"{name}: rows {sizes}; answers are {report.answer_type}.", markup=False, highlight=False)
    if report.findings:
        table = Table(box=SIMPLE_HEAD)
        table.add_column("split", no_wrap=True)
        table.add_column("fault", ratio=1)
        table.add_column("severity", no_wrap=True)
        for column in ("rows", "of"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("first rows", no_wrap=True)
        for f in report.findings:
            first = ", ".join(map(str, f.rows[:3])) + (", ..." if len(f.rows) > 3 else "")
            severity = f"[{_COLOURS[f.severity]}]{f.severity}[/]"
            table.add_row(f.split, f.fault, severity, f"{len(f.rows):,}", f"{f.size:,}", first)
        console.print(table)
    else:
        console.print("No faults found.")
    if report.token_lengths:
        table = Table(box=SIMPLE_HEAD)
        for column in ("split", "median tokens", "p95", "longest"):
            table.add_column(column, justify="left" if column == "split" else "right")
        for split, lengths in report.token_lengths.items():
            table.add_row(split, *(f"{lengths[key]:g}" for key in ("median", "p95", "max")))
        console.print(table)
