"""`semcot answer-prompt`: the answer prompt with most right answers on validation questions, for a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..calibration.answer_prompts import AnswerPromptConfig
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse
from .choices import ChoiceArguments, write_best


@dataclass(kw_only=True)
class AnswerPromptArguments(AnswerPromptConfig, ChoiceArguments):
    """Which answer prompts are compared, and on what."""


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
    write = partial(write_answer_prompt, args.model, best.answer_prompt, trust_remote_code=args.trust_remote_code)
    kept, written = "The checkpoint's own answer prompt is the best", f"{best.answer_prompt!r} is written into"
    changed = write_best(args, model, best.own, kept, written, write)
    if changed and thinks_in_words(model):
        print("The generator alone learned to answer after the old one: evaluate it before, to be fair to it.")
