"""`semcot condense`: make reasoning and condensed reasoning for a dataset that lacks them."""

from dataclasses import dataclass, field
from typing import Any

from ..condense.config import CondenseConfig
from ..condense.dataset import FAILURES_FILE, CondenseReport, condense_dataset, tokens_text
from ..condense.endpoint import EndpointSource
from ..condense.local import LocalSource
from ..condense.requests import Source
from ..condense.rules import EquationSource, SurprisalSource
from ..inference.settings import read_thought_prompt
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse

_SOURCES = ("endpoint", "local", "equations", "surprisal")


@dataclass(kw_only=True)
class CondenseArguments(CondenseConfig):
    """The texts to make, and their source."""

    source: str = field(
        metadata={
            "help": "'endpoint' (OpenAI-compatible or Hub; address and key from SEMCOT_BASE_URL and SEMCOT_API_KEY "
            "or OPENAI_BASE_URL and OPENAI_API_KEY), 'local' (a transformers model), 'equations' (a rule) or "
            "'surprisal' (a rule: keep the steps without which --model finds the answer less likely)."
        }
    )
    model: str | None = field(
        default=None, metadata={"help": "Name at the endpoint, or id or folder; not needed by 'equations'."}
    )
    thought_prompt: str | None = field(
        default=None,
        metadata={
            "help": "With 'local': worked examples by which an instruct model writes condensed reasoning from the "
            "question, kept where its last result is the answer; 'equations', or a JSON file of chat messages."
        },
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Maximum tokens of a reply of 'endpoint' and 'local'; by default 512, or 96 with thought_prompt."
        },
    )
    temperature: float = field(
        default=0.7, metadata={"help": "Temperature of second and later replies; the first is greedy."}
    )
    concurrency: int = field(default=8, metadata={"help": "Simultaneous requests to the endpoint."})
    timeout: float = field(default=60.0, metadata={"help": "Seconds to wait for the endpoint before a retry."})
    max_tries: int = field(default=6, metadata={"help": "HTTP requests for one reply before it counts as failed."})
    batch_size: int = field(default=16, metadata={"help": "Texts per batch of 'local' and 'surprisal'."})
    max_loss: float = field(
        default=0.1,
        metadata={"help": "Decrease of the answer's log-likelihood, in nats, that 'surprisal' accepts."},
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the local model's weights."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the local model."})


def run(argv: list[str]) -> int:
    """Condense and print the report; return 1 when questions got no reply."""
    data, args = parse("semcot condense", (DataArguments, CondenseArguments), argv)
    completed, report = condense_dataset(load_splits(data), _source(args), args)
    _print(report)
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in completed.items())
    print(f"The dataset is in {args.output_dir} ({sizes} rows).")
    if not report.lacking:
        print("Nothing was made: no row lacks it. Add --replace to make it again.")
    if report.rejected_rows or report.failed_rows:
        print(f"Rows that were left out are listed in {args.output_dir}/{FAILURES_FILE}.")
    if report.failed_rows:
        print("Some questions got no reply: rerun the same command to ask for those alone.")
        return 1
    print(f"Next: semcot data check --dataset {args.output_dir}")
    return 0


def _options(args: CondenseArguments, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _source(args: CondenseArguments) -> Source:
    if args.source not in _SOURCES:
        raise ValueError(f"source={args.source!r} is unknown: choose one of {', '.join(_SOURCES)}.")
    if args.thought_prompt is not None and args.source != "local":
        raise ValueError(
            f"thought_prompt={args.thought_prompt!r} needs source='local', got source={args.source!r}: leave it out."
        )
    if args.source == "equations":
        return EquationSource()
    if args.model is None:
        raise ValueError(f"source={args.source!r} needs a model: add --model.")
    if args.source == "endpoint":
        options = _options(args, "concurrency", "timeout", "max_tries", "temperature")
        return EndpointSource(args.model, max_new_tokens=args.max_new_tokens or 512, **options)
    thought_prompt = None if args.thought_prompt is None else read_thought_prompt(args.thought_prompt)
    model, tokenizer = load_model(args)
    if args.source == "surprisal":
        return SurprisalSource(model, tokenizer, name=args.model, **_options(args, "max_loss", "batch_size"))
    options = _options(args, "batch_size", "max_new_tokens", "temperature")
    return LocalSource(model, tokenizer, name=args.model, thought_prompt=thought_prompt, **options)


def _print(report: CondenseReport) -> None:
    rows = [[f"complete rows of {split}", f"{report.made[split]:,} of {n:,}"] for split, n in report.rows.items()]
    if report.wrong_given:
        rows.append(["given reasonings that end on a wrong answer", f"{report.wrong_given:,}"])
    for title, counts in (
        ("rejected row", report.rejected_rows),
        ("failed row", report.failed_rows),
        ("rejected reply", report.rejected_replies),
    ):
        rows += [[f"{title}: {reason}", f"{count:,}"] for reason, count in counts.items()]
    print_table(["what", "count"], rows, ["count"])
    if report.input_tokens or report.output_tokens:
        print(f"Input and output: {tokens_text(report.input_tokens, report.output_tokens, report.cost)}.")
