"""`semcot evaluate`: strict accuracy with intervals, latency and controls of a checkpoint or any causal LM."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..evaluation.config import EvaluationConfig
from ..options import option
from .arguments import DataArguments, load_model, load_splits, parse


@dataclass(kw_only=True)
class EvaluateArguments(EvaluationConfig):
    """What is evaluated, and how."""

    model: str = field(metadata={"help": "Folder or id of a SemCoT checkpoint or any causal LM."})
    output_dir: str = field(metadata={"help": "Folder of the report, the plots and the answer to every question."})
    split: str = option("test", "Split of the dataset that is evaluated.")
    few_shot: int = option(0, "Training questions with answers shown before each question.")
    compare_with: str | None = option(None, "Folder of another evaluation of the same questions, for paired p-values.")
    compile_generator: bool = option(False, "Make implicit tokens with compiled code; faster for small generators.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


def run(argv: Sequence[str]) -> None:
    """Evaluate, write the report and print its tables."""
    from ..evaluation import compare_runs, evaluate, print_report

    data, args = parse("semcot evaluate", (DataArguments, EvaluateArguments), argv)
    splits = load_splits(data, args.split, *(["train"] if args.few_shot else []))
    if args.few_shot > len(splits.get("train", ())):
        raise ValueError(f"few_shot={args.few_shot}: there are only {len(splits.get('train', ()))} training rows.")
    model, tokenizer = load_model(args)
    if args.compile_generator:
        compile_generator = getattr(model, "compile_generator", None)
        if compile_generator is None:
            raise ValueError(f"compile_generator=True: {args.model} is not a SemCoT checkpoint; leave the flag out.")
        compile_generator()
    report = evaluate(
        model,
        tokenizer,
        splits[args.split],
        args,
        few_shot=list(splits["train"].select(range(args.few_shot))) if args.few_shot else (),
        model_name=args.model_name or args.model,
        dataset_name=args.dataset_name or data.dataset,
    )
    print_report(report)
    if args.compare_with:
        print(json.dumps(compare_runs(args.output_dir, args.compare_with), indent=2))
    print(f"The report and the answer to every question are in {args.output_dir}.")
