"""`semcot condense`: reasoning and condensed reasoning for a dataset that lacks them."""

from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..condense.dataset import FAILURES_FILE, CondenseReport, condense_dataset, tokens_text
from ..condense.endpoint import EndpointSource
from ..condense.local import LocalSource
from ..condense.rules import EquationSource, SurprisalSource
from .arguments import DataArguments, load_model, load_splits, parse

_SOURCES = ("endpoint", "local", "equations", "surprisal")


@dataclass
class CondenseArguments:
    """What makes the texts, and which."""

    output_dir: str = field(
        metadata={"help": "Folder of the journal and of the completed dataset; a rerun goes on there."}
    )
    source: str = field(
        metadata={
            "help": "'endpoint' (OpenAI-compatible or Hub; address and key from SEMCOT_BASE_URL and SEMCOT_API_KEY "
            "or OPENAI_BASE_URL and OPENAI_API_KEY), 'local' (a transformers model), 'equations' (a rule) or "
            "'surprisal' (a rule: keep the steps without which --model would find the answer less likely)."
        }
    )
    model: str | None = field(
        default=None, metadata={"help": "Name at the endpoint, or id or folder; not needed by 'equations'."}
    )
    make: list[str] = field(
        default_factory=lambda: ["reasoning", "condensed_reasoning"],
        metadata={"help": "What to make where it is missing: reasoning, condensed_reasoning."},
    )
    replace: bool = field(default=False, metadata={"help": "Make it also where the dataset has it."})
    splits: list[str] = field(
        default_factory=lambda: ["train", "validation"],
        metadata={"help": "Splits to go through; others stay as they are."},
    )
    answer_type: str | None = field(
        default=None,
        metadata={"help": "Answer type: numeric, choice, yes_no or sequence; inferred when left out."},
    )
    max_words: int = field(default=10, metadata={"help": "Longest condensed reasoning of 'endpoint' and 'local'."})
    max_attempts: int = field(default=3, metadata={"help": "Replies asked for before a row is given up."})
    max_new_tokens: int = field(default=512, metadata={"help": "Longest reply of 'endpoint' and 'local'."})
    temperature: float = field(default=0.7, metadata={"help": "Of second and later replies; the first is greedy."})
    concurrency: int = field(default=8, metadata={"help": "Requests at once to the endpoint."})
    timeout: float = field(default=60.0, metadata={"help": "Seconds without a sign of the endpoint before a new try."})
    max_tries: int = field(default=6, metadata={"help": "HTTP requests for one reply before it counts as failed."})
    price_input: float | None = field(default=None, metadata={"help": "Price of a million input tokens."})
    price_output: float | None = field(default=None, metadata={"help": "Price of a million output tokens."})
    batch_size: int = field(default=16, metadata={"help": "Texts at once of 'local' and 'surprisal'."})
    max_loss: float = field(
        default=0.1, metadata={"help": "Nats of the answer's log-likelihood that 'surprisal' may give up."}
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the local model's weights."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the local model."})


def run(argv):
    """Condense and print what came of it; returns 1 when questions got no reply."""
    data, args = parse("semcot condense", (DataArguments, CondenseArguments), argv)
    if (args.price_input is None) != (args.price_output is None):
        raise ValueError("price_input and price_output go together: pass both, or none.")
    completed, report = condense_dataset(
        load_splits(data),
        _source(args),
        output_dir=args.output_dir,
        splits=args.splits,
        make=args.make,
        replace=args.replace,
        answer_type=args.answer_type,
        max_words=args.max_words,
        max_attempts=args.max_attempts,
        prices=None if args.price_input is None else (args.price_input, args.price_output),
    )
    _print(report)
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in completed.items())
    print(f"The dataset is in {args.output_dir} ({sizes} rows).")
    if not report.lacking:
        print("Nothing was made: no row lacks it. Add --replace to make it anew.")
    if report.rejected_rows or report.failed_rows:
        print(f"Rows that were left out are told in {args.output_dir}/{FAILURES_FILE}.")
    if report.failed_rows:
        print("Some questions got no reply: rerun the same command to ask for those alone.")
        return 1
    print(f"Next: semcot data check --dataset {args.output_dir}")
    return 0


def _source(args):
    if args.source not in _SOURCES:
        raise ValueError(f"source={args.source!r} is unknown: choose one of {', '.join(_SOURCES)}.")
    if args.source == "equations":
        return EquationSource()
    if args.model is None:
        raise ValueError(f"source={args.source!r} needs a model: add --model.")
    if args.source == "endpoint":
        return EndpointSource(
            args.model,
            concurrency=args.concurrency,
            timeout=args.timeout,
            max_tries=args.max_tries,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
        )
    model, tokenizer = load_model(args)
    if args.source == "surprisal":
        return SurprisalSource(model, tokenizer, name=args.model, max_loss=args.max_loss, batch_size=args.batch_size)
    return LocalSource(
        model,
        tokenizer,
        name=args.model,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
    )


def _print(report: CondenseReport):
    table = Table(box=SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("count", justify="right")
    for split, count in report.rows.items():
        table.add_row(f"rows of {split} that are complete", f"{report.made[split]:,} of {count:,}")
    if report.wrong_given:
        table.add_row("given reasonings that end on a wrong answer", f"{report.wrong_given:,}")
    for title, counts in (
        ("rejected row", report.rejected_rows),
        ("failed row", report.failed_rows),
        ("rejected reply", report.rejected_replies),
    ):
        for reason, count in counts.items():
            table.add_row(f"{title}: {reason}", f"{count:,}")
    console = Console()
    console.print(table)
    if report.input_tokens or report.output_tokens:
        print(f"Read and written: {tokens_text(report.input_tokens, report.output_tokens, report.cost)}.")
