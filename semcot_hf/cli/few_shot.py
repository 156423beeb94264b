"""`semcot few-shot`: the number of worked examples with most right validation answers, for a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ..calibration.few_shot import FewShotConfig
from ..options import option
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse
from .choices import ChoiceArguments, write_best


@dataclass(kw_only=True)
class FewShotArguments(FewShotConfig, ChoiceArguments):
    """Which numbers of worked examples, which are training rows, are compared, and on what."""

    words_column: str | None = option(
        None, "Words of the examples, those that the generator was trained on: the `words_column` of `semcot distill`."
    )


def run(argv: Sequence[str]) -> None:
    """Compare the numbers of examples, print the table and write the best examples into the checkpoint."""
    from ..calibration.calibrate import check_checkpoint
    from ..calibration.few_shot import compare_few_shot, write_few_shot
    from ..distillation.words import choose_column, fits_thought, worked_examples
    from ..evaluation.report import p_value, percent, percent_interval

    data, args = parse("semcot few-shot", (DataArguments, FewShotArguments), argv)
    check_checkpoint(args.model)
    splits = load_splits(data, args.split, "train")
    rows, train = splits[args.split], splits["train"]
    model, tokenizer = load_model(args)
    column = args.words_column or choose_column((row, row) for row in train)
    examples = worked_examples(
        ((row, row) for row in train), column, max(args.few_shot_examples), fits_thought(cast(Any, model), tokenizer)
    )
    if len(examples) < max(args.few_shot_examples):
        raise ValueError(
            f"few_shot_examples={args.few_shot_examples}, words_column={column!r}: only {len(examples)} of the first "
            "thousand training rows have such words that fit into a thought. Lower the numbers, or take other words."
        )
    compared = compare_few_shot(model, tokenizer, rows, examples, args)
    header = ["worked examples", "accuracy", "95 % interval", "p against the own", "cut off"]
    table = [
        [
            f"{len(result.examples)}{' (own)' if result.own else ''}",
            percent(result.semcot["accuracy"]),
            percent_interval(result.semcot["ci95"]),
            "" if result.difference is None else p_value(result.difference["p"]),
            str(result.semcot["unfinished"]),
        ]
        for result in compared.results
    ]
    alone = compared.generator
    table.append(
        [
            "the generator alone",
            percent(alone["accuracy"]),
            percent_interval(alone["ci95"]),
            "",
            str(alone["unfinished"]),
        ]
    )
    print_table(header, table, right=header[1:], title=f"SemCoT on {len(rows)} questions of {data.dataset}")
    if examples:
        print(f"Words of the examples ({column}), as the generator should write them: {examples[0]['words']}")
    best = compared.results[0]
    number = len(best.examples)
    kept = "The checkpoint's own examples are the best" if number else "The host is best without examples"
    written = f"{number} worked example{'s are' if number > 1 else ' is'} written into"
    if not number:
        written = "The host is best without examples, and they were removed from"
    write = partial(write_few_shot, args.model, best.examples, trust_remote_code=args.trust_remote_code)
    write_best(args, model, best.own, kept, written, write)
