"""`semcot convert`: a checkpoint published by SemCoT's authors -> one that `from_pretrained` and `pipeline` load."""

from dataclasses import dataclass, field

from ..convert import convert_original
from .arguments import parse


@dataclass
class ConvertArguments:
    """What is converted, for which host."""

    model: str = field(metadata={"help": "Folder or Hub id of the authors' checkpoint (jonathanhe123/SemCoT-*)."})
    host: str = field(metadata={"help": "Folder or Hub id of the host it was trained with."})
    output_dir: str = field(metadata={"help": "Where the converted checkpoint and its tokenizer are saved."})
    num_implicit_tokens: int = field(default=1, metadata={"help": "k; the authors train with 5 and evaluate with 1."})
    include_host: bool = field(default=False, metadata={"help": "Save the host's weights, too: one whole folder."})
    dtype: str = field(default="auto", metadata={"help": "Data type of host and generator; 'auto' keeps the stored."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the authors' checkpoint."})


def run(argv):
    """Convert and say what was written."""
    (args,) = parse("semcot convert", (ConvertArguments,), argv)
    model = convert_original(
        args.model,
        args.host,
        args.output_dir,
        num_implicit_tokens=args.num_implicit_tokens,
        include_host=args.include_host,
        dtype=args.dtype,
        revision=args.revision,
    )
    host = "with its host" if args.include_host else f"for the host {args.host}"
    print(f"{args.model} is in {args.output_dir}, {host}, k={model.config.num_implicit_tokens}.")
    print(f"Next: semcot evaluate --model {args.output_dir} --dataset DATASET --output_dir REPORT")
    return 0
