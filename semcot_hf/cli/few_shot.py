"""`semcot few-shot`: the number of worked examples with most right validation answers, for a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ..calibration.few_shot import FewShotConfig
from ..options import option
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse


@dataclass(kw_only=True)
class FewShotArguments(FewShotConfig):
    """Which numbers of worked examples are compared, and on what."""

    model: str = field(metadata={"help": "Folder of a SemCoT checkpoint, which gets the best worked examples."})
    words_column: str | None = option(
        None, "Words of the examples, those that the generator was trained on: the `words_column` of `semcot distill`."
    )
    split: str = option("validation", "Split of the dataset whose questions decide; the examples are training rows.")
    dry_run: bool = option(False, "Print the comparison and leave the checkpoint as it is.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


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
    print("On new questions the best of several is worth a little less than here.")
    if args.split == "test":
        print("This was the test split: accuracy on it is no longer that on new questions.")
    if best.own:
        print("The checkpoint's own examples are the best: nothing was written.")
    elif args.dry_run:
        print("Nothing was written (--dry_run).")
    else:
        calibrated = model.config.escalation is not None
        write_few_shot(args.model, best.examples, trust_remote_code=args.trust_remote_code)
        print(f"{len(best.examples)} worked examples are written into {args.model}.")
        if calibrated:
            print("The rule of escalation was removed, since it was calibrated on other answers: calibrate again.")
