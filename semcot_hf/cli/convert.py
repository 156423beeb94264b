"""`semcot convert`: convert a checkpoint published by SemCoT's authors into one that `from_pretrained` loads."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..convert import convert_original
from ..options import option
from .arguments import parse


@dataclass
class ConvertArguments:
    """The checkpoint to convert, and its host."""

    model: str = field(metadata={"help": "Folder or Hub id of the authors' checkpoint (jonathanhe123/SemCoT-*)."})
    host: str = field(metadata={"help": "Folder or Hub id of the host it was trained with."})
    output_dir: str = field(metadata={"help": "Where the converted checkpoint and its tokenizer are saved."})
    num_implicit_tokens: int = option(1, "k; the authors train with 5 and evaluate with 1.")
    include_host: bool = option(False, "Also save the host's weights, for one self-contained folder.")
    dtype: str = option("auto", "Data type of host and generator; 'auto' keeps the stored one.")
    revision: str | None = option(None, "Branch, tag or commit of the authors' checkpoint.")


def run(argv: Sequence[str]) -> None:
    """Convert the checkpoint and print where it is."""
    (args,) = parse("semcot convert", (ConvertArguments,), argv)
    model = convert_original(**vars(args))
    host = "with its host" if args.include_host else f"for the host {args.host}"
    print(f"{args.model} is in {args.output_dir}, {host}, k={model.config.num_implicit_tokens}.")
    print(f"Next: semcot evaluate --model {args.output_dir} --dataset DATASET --output_dir REPORT")
