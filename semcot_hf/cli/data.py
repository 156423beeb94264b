"""`semcot data check`: print the faults of a dataset, and write a cleaned copy on request."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from ..data import check_dataset, clean_dataset
from ..data.loading import write_splits
from ..storage import write_atomically, write_json
from ..tables import print_table
from .arguments import DataArguments, load_splits, parse

_USAGE = "usage: semcot data check --dataset NAME_OR_PATH [flags]; semcot data check --help explains them."
_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}


@dataclass
class CheckArguments:
    """Options of the check, and the files to write."""

    answer_type: str | None = field(
        default=None,
        metadata={"help": "Answer type: numeric, choice, yes_no, sequence or expression; inferred when left out."},
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Id or folder of the tokenizer that measures lengths."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of the context; the tokenizer's own limit when left out."}
    )
    max_condensed_words: int = field(default=10, metadata={"help": "Maximum words of a condensed reasoning."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for report.md and report.json."})
    clean: str | None = field(
        default=None,
        metadata={
            "help": "New folder for a copy, one JSONL file per split, without faulty or repeated training rows."
        },
    )


def run(argv: list[str]) -> int:
    """Run `semcot data check`; return 1 when the dataset has errors."""
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
    print(f"{data.dataset}: {report.summary()}")
    for header, rows, right in report.tables(shown=3):
        print_table(header, rows, right, styles=_COLOURS)
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
