"""`semcot answer-prompt`: the answer prompt with most right answers on validation questions, for a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..calibration.answer_prompts import AnswerPromptConfig
from ..options import option
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse


@dataclass(kw_only=True)
class AnswerPromptArguments(AnswerPromptConfig):
    """Which answer prompts are compared, and on what."""

    model: str = field(metadata={"help": "Folder of a SemCoT checkpoint, which gets the best answer prompt."})
    split: str = option("validation", "Split of the dataset whose questions decide.")
    dry_run: bool = option(False, "Print the comparison and leave the checkpoint as it is.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


def run(argv: Sequence[str]) -> None:
    """Compare the answer prompts, print the table and write the best one into the checkpoint."""
    from ..calibration.answer_prompts import compare_answer_prompts, write_answer_prompt
    from ..calibration.calibrate import check_checkpoint
    from ..evaluation.report import p_value, percent, percent_interval
    from ..inference.settings import thinks_in_words

    data, args = parse("semcot answer-prompt", (DataArguments, AnswerPromptArguments), argv)
    check_checkpoint(args.model)
    rows = load_splits(data, args.split)[args.split]
    model, tokenizer = load_model(args)
    results = compare_answer_prompts(model, tokenizer, rows, args)
    header = ["answer prompt", "SemCoT", "95 % interval", "p against the own", "cut off", "no CoT"]
    print_table(
        header,
        [
            [
                f"{result.answer_prompt!r}{' (own)' if result.own else ''}",
                percent(result.semcot["accuracy"]),
                percent_interval(result.semcot["ci95"]),
                "" if result.difference is None else p_value(result.difference["p"]),
                str(result.semcot["unfinished"]),
                percent(result.no_cot["accuracy"]),
            ]
            for result in results
        ],
        right=header[1:],
        title=f"{len(rows)} questions of {data.dataset}",
    )
    best = results[0]
    print("On new questions the best of several is worth a little less than here.")
    if args.split == "test":
        print("This was the test split: accuracy on it is no longer that on new questions.")
    if best.own:
        print("The checkpoint's own answer prompt is the best: nothing was written.")
    elif args.dry_run:
        print("Nothing was written (--dry_run).")
    else:
        calibrated = model.config.escalation is not None
        write_answer_prompt(args.model, best.answer_prompt, trust_remote_code=args.trust_remote_code)
        print(f"{best.answer_prompt!r} is written into {args.model}.")
        if calibrated:
            print("The rule of escalation was removed, since it was calibrated on other answers: calibrate again.")
        if thinks_in_words(model):
            print("The generator alone learned to answer after the old one: evaluate it before, to be fair to it.")
