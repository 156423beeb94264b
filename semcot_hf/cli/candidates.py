"""`semcot candidates`: the number of candidate thoughts with most right validation answers, for a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ..calibration.candidates import CandidatesConfig
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse
from .choices import ChoiceArguments, write_best


@dataclass(kw_only=True)
class CandidatesArguments(CandidatesConfig, ChoiceArguments):
    """Which numbers of candidates and weights of the host are compared, and on what."""


def run(argv: Sequence[str]) -> None:
    """Compare the numbers and weights, print the table and write the best ones into the checkpoint."""
    from ..calibration.calibrate import check_checkpoint
    from ..calibration.candidates import compare_candidates, write_candidates
    from ..evaluation.report import duration, p_value, percent, percent_interval

    data, args = parse("semcot candidates", (DataArguments, CandidatesArguments), argv)
    check_checkpoint(args.model)
    rows = load_splits(data, args.split)[args.split]
    model, tokenizer = load_model(args)
    results = compare_candidates(model, tokenizer, rows, args)
    header = ["candidates", "weight", "SemCoT", "95 % interval", "p vs own", "time", "alone"]
    print_table(
        header,
        [
            [
                f"{result.candidates.number}{' (own)' if result.own else ''}",
                "" if result.candidates.number == 1 else f"{result.candidates.host_weight:g}",
                percent(result.semcot["accuracy"]),
                percent_interval(result.semcot["ci95"]),
                "" if result.difference is None else p_value(result.difference["p"]),
                duration(result.seconds),
                percent(result.generator["accuracy"]),
            ]
            for result in results
        ],
        right=header,
        title=f"{len(rows)} questions of {data.dataset}, {args.batch_size} at once",
    )
    best = results[0]
    print("weight: of the host in the choice; alone: the generator, after the most probable of as many thoughts")
    number, weight = best.candidates
    found = f"{number} candidates and a weight of {weight:g} are" if number > 1 else "num_candidates=1 is"
    write = partial(write_candidates, args.model, best.candidates, trust_remote_code=args.trust_remote_code)
    write_best(
        args, model, best.own, "The checkpoint's own number and weight are the best", f"{found} written into", write
    )
