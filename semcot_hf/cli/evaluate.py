"""`semcot evaluate`: a checkpoint or any causal LM, judged strictly, with intervals, latency and controls."""

import json
from dataclasses import dataclass, field

from .arguments import DataArguments, load_model, load_splits, parse


@dataclass
class EvaluateArguments:
    """What is evaluated, and how."""

    model: str = field(metadata={"help": "Folder or id of a SemCoT checkpoint or any causal LM."})
    output_dir: str = field(metadata={"help": "Folder of the report, the plots and the answer to every question."})
    split: str = field(default="test", metadata={"help": "Split of the dataset that is evaluated."})
    answer_type: str | None = field(
        default=None,
        metadata={"help": "Answer type: numeric, choice, yes_no or sequence; inferred when left out."},
    )
    methods: list[str] | None = field(default=None, metadata={"help": "Of no_cot, cot, semcot; all by default."})
    no_controls: bool = field(default=False, metadata={"help": "Leave the controls out."})
    batch_size: int = field(default=64, metadata={"help": "Questions answered at once."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, explicit reasoning included."})
    few_shot: int = field(default=0, metadata={"help": "Training questions with their answers put before each one."})
    chat: bool | None = field(
        default=None, metadata={"help": "Use the chat template; told from the tokenizer when left out."}
    )
    token_counts: list[int] = field(
        default_factory=list, metadata={"help": "Further numbers of implicit tokens to run SemCoT with."}
    )
    compare_with: str | None = field(
        default=None, metadata={"help": "Folder of another evaluation of the same questions, for paired p-values."}
    )
    latency_batch_sizes: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Batch sizes that latency is measured at."}
    )
    latency_samples: int = field(default=50, metadata={"help": "Questions whose latency is measured one by one."})
    compile_generator: bool = field(
        default=False, metadata={"help": "Make the implicit tokens by compiled code, which small generators gain by."}
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    overwrite: bool = field(default=False, metadata={"help": "Discard another run's answers in output_dir."})
    seed: int = field(default=0, metadata={"help": "Seed of the controls and of the questions for latency."})


def run(argv):
    """Evaluate and write the report; prints its table."""
    from ..evaluation import compare_runs, evaluate, print_report

    data, args = parse("semcot evaluate", (DataArguments, EvaluateArguments), argv)
    splits = load_splits(data, args.split, *(["train"] if args.few_shot else []))
    if args.few_shot > len(splits.get("train", ())):
        raise ValueError(f"few_shot={args.few_shot}: the training rows are only {len(splits.get('train', ()))}.")
    model, tokenizer = load_model(args)
    if args.compile_generator:
        if not hasattr(model, "compile_generator"):
            raise ValueError(f"compile_generator=True: {args.model} is no SemCoT checkpoint; leave the flag out.")
        model.compile_generator()
    report = evaluate(
        model,
        tokenizer,
        splits[args.split],
        answer_type=args.answer_type,
        methods=args.methods,
        controls=not args.no_controls,
        output_dir=args.output_dir,
        overwrite=args.overwrite,
        batch_size=args.batch_size,
        max_new_tokens=args.max_new_tokens,
        few_shot=list(splits["train"].select(range(args.few_shot))) if args.few_shot else (),
        chat=args.chat,
        token_counts=args.token_counts,
        latency_samples=args.latency_samples,
        latency_batch_sizes=args.latency_batch_sizes,
        seed=args.seed,
        model_name=args.model,
        dataset_name=data.dataset,
    )
    print_report(report)
    if args.compare_with:
        print(json.dumps(compare_runs(args.output_dir, args.compare_with), indent=2))
    print(f"The report and the answer to every question are in {args.output_dir}.")
