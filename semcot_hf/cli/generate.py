"""`semcot generate`: answers to the questions of a file; fast and resumable."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers.utils import logging

from ..inference.generate_file import GenerateConfig, generate_file
from ..inference.question_file import read_questions
from ..options import option
from .arguments import load_model, parse


@dataclass(kw_only=True)
class GenerateArguments(GenerateConfig):
    """What is answered, and how. Answers are greedy."""

    model: str = field(metadata={"help": "Folder or id of a SemCoT checkpoint or any causal LM."})
    input: str = field(metadata={"help": "JSONL file, one question per line."})
    output: str = field(
        metadata={"help": "JSONL file to write: each row with its answer. A rerun continues a killed run."}
    )
    column: str = option("query", "Field of the question: a text or a list of chat messages.")
    output_column: str = option("output", "Field of the answer; '<output_column>_tokens' is its length.")
    dtype: str = option("auto", "Data type of the weights.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")


def run(argv: Sequence[str]) -> None:
    """Answer the questions and print one line of counts and rates."""
    (args,) = parse("semcot generate", (GenerateArguments,), argv)
    questions = read_questions(
        args.input, args.output, column=args.column, output_column=args.output_column, overwrite=args.overwrite
    )
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    model, tokenizer = load_model(args)
    print(generate_file(model, tokenizer, questions, args, model_name=args.model_name or args.model))
    print(f"The answers are in {args.output}.")
