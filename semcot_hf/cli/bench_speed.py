"""`semcot bench speed`: how long answers take, how that grows, and how near it is to the limit."""

import shlex
from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer

from ..bench.speed.report import print_report
from ..bench.speed.run import PLOT, REPORT, TABLES, measure_speed
from ..bench.speed.settings import SPEED_METHODS
from ..bench.speed.shapes import GPU_SIZES, SIZES
from ..data import load_reasoning_dataset
from .arguments import parse


@dataclass
class SpeedArguments:
    """What is measured. The first value of each list is the centre, around which one list at a time is swept."""

    output_dir: str = field(metadata={"help": "Folder of the report; rows that it holds are not run again."})
    sizes: list[str] = field(
        default_factory=lambda: ["tiny"],
        metadata={"help": f"Shapes, of {', '.join(SIZES)}; {', '.join(GPU_SIZES)} need a GPU."},
    )
    methods: list[str] = field(
        default_factory=lambda: list(SPEED_METHODS), metadata={"help": "Methods; all by default."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64], metadata={"help": "Questions at once."}
    )
    prompt_lengths: list[int] = field(
        default_factory=lambda: [128, 64, 256, 512, 1024, 2048], metadata={"help": "Tokens of each prompt."}
    )
    implicit_tokens: list[int] = field(
        default_factory=lambda: [5, 0, 1, 2, 8, 16, 32],
        metadata={"help": "k of SemCoT, and the number of thoughts of the Coconut-style loop."},
    )
    answer_tokens: list[int] = field(default_factory=lambda: [8, 32], metadata={"help": "Tokens of each answer."})
    cot_tokens: int = field(default=100, metadata={"help": "Tokens of explicit CoT's reasoning."})
    cot_dataset: str | None = field(
        default=None,
        metadata={"help": "Take the mean length of this dataset's reasoning instead; needs cot_tokenizer."},
    )
    cot_tokenizer: str | None = field(default=None, metadata={"help": "Id or folder of the tokenizer to count with."})
    caches: list[str] | None = field(
        default=None,
        metadata={"help": "dynamic, static; on a GPU static with compiled decoding, then dynamic, else dynamic."},
    )
    seconds: float = field(
        default=2.0, metadata={"help": "Budget of each row; exceeded for three turns, up to 5 times."}
    )
    device: str | None = field(default=None, metadata={"help": "cuda where there is one, else cpu."})
    dtype: str | None = field(default=None, metadata={"help": "bfloat16 on a GPU, else float32."})
    threads: int | None = field(default=None, metadata={"help": "Threads of torch; its own choice when left out."})
    overwrite: bool = field(default=False, metadata={"help": "Discard the rows that output_dir holds."})


def run(argv):
    """Measure and write the report; prints each row as it comes, then targets and growth."""
    (args,) = parse("semcot bench speed", (SpeedArguments,), argv)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.startswith("cuda")
    report = measure_speed(
        output_dir=args.output_dir,
        command=f"semcot bench speed {shlex.join(argv)}",
        overwrite=args.overwrite,
        progress=lambda line: print(line, flush=True),
        sizes=args.sizes,
        methods=args.methods,
        batch_sizes=args.batch_sizes,
        prompt_lengths=args.prompt_lengths,
        implicit_tokens=args.implicit_tokens,
        answer_tokens=args.answer_tokens,
        caches=args.caches or (["static", "dynamic"] if gpu else ["dynamic"]),
        cot_tokens=reasoning_tokens(args),
        dtype=args.dtype or ("bfloat16" if gpu else "float32"),
        device=device,
        threads=args.threads or torch.get_num_threads(),
        seconds=args.seconds,
    )
    print_report(report)
    print(f"{REPORT}, {TABLES} and {PLOT} are in {args.output_dir}.")


def reasoning_tokens(args):
    """Tokens of explicit CoT: as given, or the mean of the dataset's test rows."""
    if args.cot_dataset is None:
        return args.cot_tokens
    if args.cot_tokenizer is None:
        raise ValueError(
            f"cot_dataset={args.cot_dataset!r} needs a tokenizer to count with: add --cot_tokenizer ID_OR_FOLDER."
        )
    rows = load_reasoning_dataset(args.cot_dataset)["test"]
    tokenizer = AutoTokenizer.from_pretrained(args.cot_tokenizer)
    lengths = [len(ids) for ids in tokenizer(rows["reasoning"][:], add_special_tokens=False)["input_ids"]]
    return round(sum(lengths) / len(lengths))
