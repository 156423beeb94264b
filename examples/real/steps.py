"""Equations as the reasoning steps of SIM-CoT, and what the step decoder of a checkpoint reads of its tokens.

    python examples/real/steps.py rows --train data/multiarith/train_42.json data/gsm8k/train_42.json \
        --test data/multiarith/eval_42.json --output runs/real/steps/data
    python examples/real/steps.py read --model runs/real/steps/model --data runs/real/steps/data/test.jsonl \
        --output runs/real/steps/read.jsonl.gz

`rows` writes train.jsonl and test.jsonl, in which each equation of a row's reasoning is a step; rows without one, and
training questions that are among the test questions, are left out. `read` keeps the text of each token of each
question, goes on where it was cut off, and prints in how many questions a token says the equation of its place, up to
spaces, and in how many any token ends in the answer.
"""

import argparse
import gzip
import json
from pathlib import Path

from kept import kept_rows
from pair import rows_of
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer
from semcot_hf.data.equations import equations_of
from semcot_hf.data.splits import normalise_question
from semcot_hf.inference.prompting import encode_prompt, pad_left, prompt_text
from semcot_hf.storage import write_json_lines


def with_equations(paths: list[str]) -> list[dict]:
    """Return the rows of files that have equations, with these as steps."""
    found = ((row, equations_of(row["reasoning"])) for row in rows_of(paths))
    return [{**row, "steps": equations} for row, equations in found if equations]


def write_rows(arguments: argparse.Namespace) -> None:
    """Write train.jsonl and test.jsonl."""
    test, folder = with_equations([arguments.test]), Path(arguments.output)
    asked = {normalise_question(row["query"]) for row in rows_of([arguments.test])}
    train = [row for row in with_equations(arguments.train) if normalise_question(row["query"]) not in asked]
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "train.jsonl", train[: arguments.max_train_rows])
    write_json_lines(folder / "test.jsonl", test)


def read(arguments: argparse.Namespace) -> None:
    """Read the tokens of all questions, and print how often they say the right thing."""
    path, rows = Path(arguments.output), rows_of([arguments.data])
    found = kept_rows(path, vars(arguments), "model", "data")
    model = SemCoTForCausalLM.from_pretrained(arguments.model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [encode_prompt(tokenizer, prompt_text(tokenizer, row["query"])) for row in rows]
    for start in range(len(found), len(rows), arguments.batch_size):
        ids, mask = pad_left(prompts[start : start + arguments.batch_size])
        said = model.implicit_steps(ids, mask, tokenizer=tokenizer)
        part = rows[start : start + arguments.batch_size]
        made = [{"index": start + number, **compared(row, said[number])} for number, row in enumerate(part)]
        with gzip.open(path, "at") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        found += made
    places = max(len(row["tokens"]) for row in found)
    for place in range(places):
        told = [row["right"][place] for row in found if place < len(row["right"])]
        print(f"token {place + 1}: the step of its place in {sum(told)} of {len(told)} questions")
    print(f"any token ends in the answer: {sum(row['answer'] for row in found)} of {len(found)} questions")


def compared(row: dict, said: list[str]) -> dict:
    """Return what the tokens say, which of them are right, and whether one ends in the answer."""
    steps = ["".join(step.split()) for step in row["steps"]]
    right = ["".join(text.split()) == step for text, step in zip(said, steps, strict=False)]
    results = [text.rpartition("=")[2] for text in said[: len(steps)]]
    return {"tokens": said, "right": right, "answer": any(check_answer(r, row["answer"], "numeric") for r in results)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    rows = commands.add_parser("rows", help="Write rows with equations as steps.")
    rows.add_argument("--train", nargs="+", required=True, help="Files of training rows.")
    rows.add_argument("--test", required=True, help="File of test rows.")
    rows.add_argument("--output", required=True, help="Folder of train.jsonl and test.jsonl.")
    rows.add_argument("--max_train_rows", type=int, default=720, help="Use at most this many training rows.")
    rows.set_defaults(run=write_rows)
    reader = commands.add_parser("read", help="Read the tokens of a checkpoint.")
    reader.add_argument("--model", required=True, help="A SemCoT checkpoint with a step decoder.")
    reader.add_argument("--data", required=True, help="File of rows with steps.")
    reader.add_argument("--output", required=True, help="File of what the tokens say.")
    reader.add_argument("--batch_size", type=int, default=16, help="Questions at once.")
    reader.set_defaults(run=read)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
