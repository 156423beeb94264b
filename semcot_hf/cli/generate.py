"""`semcot generate`: answers to many questions of a file, as fast as memory lets, resumable."""

import sys
from dataclasses import dataclass, field

from transformers.utils import logging

from .arguments import load_model, parse


@dataclass
class GenerateArguments:
    """What is answered, and how. Answers are greedy."""

    model: str = field(metadata={"help": "Folder or id of a SemCoT checkpoint or any causal LM."})
    input: str = field(metadata={"help": "JSONL file, one question a line."})
    output: str = field(
        metadata={"help": "JSONL file to write: each row with its answer. A rerun goes on where a killed run was."}
    )
    column: str = field(
        default="query", metadata={"help": "Field of the question: a text or a list of chat messages."}
    )
    output_column: str = field(
        default="output", metadata={"help": "Field of the answer; '<output_column>_tokens' has its length."}
    )
    method: str | None = field(
        default=None,
        metadata={"help": "no_cot, cot or semcot; semcot for a SemCoT checkpoint, else no_cot, when left out."},
    )
    num_implicit_tokens: int | None = field(
        default=None, metadata={"help": "Implicit tokens of semcot; the checkpoint's own number when left out."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer."})
    tokens_per_batch: int = field(
        default=16384,
        metadata={
            "help": "Most tokens of one batch: questions x (longest prompt + implicit tokens + max_new_tokens). "
            "Halved when memory is too small."
        },
    )
    chat: bool | None = field(
        default=None, metadata={"help": "Use the chat template; told from the tokenizer when left out."}
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "'auto' runs what all prompts begin with (system prompt, examples) through the host once; 'off'."
        },
    )
    dtype: str = field(default="auto", metadata={"help": "Data type of the weights."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the output, and discard unfinished work of other settings."}
    )


def run(argv):
    """Answer the questions; prints one line of counts and rates."""
    from ..inference.generate_file import generate_file
    from ..inference.question_file import read_questions

    (args,) = parse("semcot generate", (GenerateArguments,), argv)
    if args.shared_prefix not in ("auto", "off"):
        raise ValueError(f"shared_prefix={args.shared_prefix!r}: must be 'auto' or 'off'.")
    questions = read_questions(
        args.input, args.output, column=args.column, output_column=args.output_column, overwrite=args.overwrite
    )
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    model, tokenizer = load_model(args)
    summary = generate_file(
        model,
        tokenizer,
        questions,
        method=args.method,
        num_implicit_tokens=args.num_implicit_tokens,
        max_new_tokens=args.max_new_tokens,
        tokens_per_batch=args.tokens_per_batch,
        chat=args.chat,
        shared_prefix=args.shared_prefix == "auto",
        overwrite=args.overwrite,
        model_name=args.model,
    )
    print(summary)
    print(f"The answers are in {args.output}.")
