"""`semcot calibrate`: when implicit answers are kept and when the host reasons in words, written into a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..calibration.config import CalibrationConfig
from ..options import option
from ..tables import print_table
from .arguments import DataArguments, load_model, load_splits, parse


@dataclass(kw_only=True)
class CalibrateArguments(CalibrationConfig):
    """What is calibrated, to what target, and how."""

    model: str = field(metadata={"help": "Folder of a SemCoT checkpoint, into whose config.json the rule is written."})
    split: str = option("validation", "Split of the dataset that is calibrated on.")
    dry_run: bool = option(False, "Print what is expected and leave the checkpoint as it is.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


def run(argv: Sequence[str]) -> None:
    """Calibrate, write the rule into the checkpoint and print what it promises."""
    from ..calibration.calibrate import calibrate, check_checkpoint, write_escalation

    data, args = parse("semcot calibrate", (DataArguments, CalibrateArguments), argv)
    check_checkpoint(args.model)
    rows = load_splits(data, args.split)[args.split]
    model, tokenizer = load_model(args)
    found = calibrate(model, tokenizer, rows, args)
    if not args.dry_run:
        write_escalation(args.model, found.rule)
    for line in _print(found.rule.expected or {}):
        print(line)
    rule = found.rule
    print(f"Answers are kept from a confidence of {rule.threshold:.4g}, by {', '.join(rule.signals)}.")
    if rule.router is not None:
        print(f"The router answers at once from a confidence of {rule.router['threshold']:.4g}.")
    elif args.router:
        print(f"No router: {found.without_router}.")
    if args.split == "test":
        print("This was the test split: accuracy on it is no longer that on new questions.")
    print("Nothing was written (--dry_run)." if args.dry_run else f"Written to {args.model}/config.json.")


def _print(expected: dict[str, Any]) -> list[str]:
    """Print the table of what is expected; return the sentences below it."""
    from ..evaluation.report import WAY_NAMES, duration, percent, percent_interval

    share, explicit = expected["share_of_explicit_seconds"], expected["ways"]["explicit"]["seconds"]
    rows = [
        [WAY_NAMES[name], percent(way["accuracy"]), "", duration(way["seconds"])]
        for name, way in expected["ways"].items()
    ]
    interval = percent_interval(expected["accuracy_ci95"])
    rows.append(["escalation, new questions", percent(expected["accuracy"]), interval, duration(expected["seconds"])])
    print_table(
        ["way", "accuracy", "95 % interval", "mean time"],
        rows,
        right=["accuracy", "95 % interval", "mean time"],
        title=f"Calibrated on {expected['questions']} questions for {expected['target']}",
    )
    lines = [
        f"On new questions it expects {100 * expected['difference']:+.1f} points from explicit reasoning "
        f"(95 % interval {percent_interval(expected['difference_ci95'], signed=True)}), and escalates "
        f"{percent(expected['escalated'])} ({percent_interval(expected['escalated_ci95'])})"
        + (f"; {percent(expected['at_once'])} are answered at once." if expected["at_once"] else "."),
    ]
    if share is not None:
        lines.append(f"It takes {share:.2f} of the time of explicit reasoning, {duration(explicit)}.")
    if expected["accuracy"] < expected["target_accuracy"] - 0.0005:
        lines.append(
            f"That is below the target of {percent(expected['target_accuracy'])}, which it reaches on the questions "
            "that it was chosen on: more questions would narrow the gap."
        )
    if share is not None and share >= 1:
        lines.append("Explicit reasoning alone would be as quick.")
    return lines
