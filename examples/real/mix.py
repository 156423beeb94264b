"""One folder of rows per test set, trained on the rows of several sets.

    python examples/real/mix.py --train data/svamp/train_42.json data/multiarith/train_42.json \
        --short data/gsm8k_equations/train.txt --max_short 700 \
        --test data/svamp/eval_42.json data/multiarith/eval_42.json data/gsm8k/eval_42.json --output runs/mixed

Of the files of `--short` only rows with at most `--max_operations` operations and `--max_characters` characters are
taken, at random. Questions of any test file are left out, and each question is taken once. `OUTPUT/SET`, of which the
folder of the test file gives the name, has train.jsonl and validation.jsonl, the same for all sets, and SET's own
test.jsonl.
"""

import argparse
import random
import re
from pathlib import Path

from pair import rows_of

from semcot_hf.data.equations import equations_of
from semcot_hf.data.splits import normalise_question
from semcot_hf.storage import write_json_lines


def operations(row: dict) -> int:
    """Return the number of operations in the equations of a row's reasoning, 0 where it has none."""
    return sum(len(re.findall(r"[-+*/](?=\D*\d)", left[1:])) for left in _left_sides(row))


def _left_sides(row: dict) -> list[str]:
    return [equation.partition("=")[0] for equation in equations_of(row["reasoning"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", required=True, help="Files of training rows, taken whole.")
    parser.add_argument("--short", nargs="*", default=[], help="Files of which short rows are taken.")
    parser.add_argument("--max_short", type=int, default=700, help="Take at most this many of them.")
    parser.add_argument("--max_operations", type=int, default=2, help="Most operations of a short row.")
    parser.add_argument("--max_characters", type=int, default=230, help="Most characters of a short row's question.")
    parser.add_argument("--test", nargs="+", required=True, help="Files of test rows.")
    parser.add_argument("--validation", type=float, default=0.1, help="Share of the rows kept for validation.")
    parser.add_argument("--seed", type=int, default=42, help="Seed of the choice of rows.")
    parser.add_argument("--output", required=True, help="Folder of folders.")
    arguments = parser.parse_args()
    if not 0 < arguments.validation < 1:
        parser.error(f"--validation {arguments.validation} must lie in (0, 1).")
    drawn = random.Random(arguments.seed)
    tests = {Path(path).resolve().parent.name: rows_of([path]) for path in arguments.test}
    if len(tests) < len(arguments.test):
        parser.error(f"--test {' '.join(arguments.test)}: two files lie in folders of the same name.")
    seen = {normalise_question(row["query"]) for rows in tests.values() for row in rows}
    short = [row for row in rows_of(arguments.short) if 0 < operations(row) <= arguments.max_operations]
    short = [row for row in short if len(row["query"]) <= arguments.max_characters]
    drawn.shuffle(short)
    rows = []
    for row in rows_of(arguments.train) + short[: arguments.max_short]:
        question = normalise_question(row["query"])
        if question not in seen:
            seen.add(question)
            rows.append(row)
    drawn.shuffle(rows)
    kept = max(1, round(arguments.validation * len(rows)))
    for name, test in tests.items():
        folder = Path(arguments.output) / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in (("train", rows[kept:]), ("validation", rows[:kept]), ("test", test)):
            write_json_lines(folder / f"{split}.jsonl", part)
    print(f"{len(rows) - kept} training rows, {kept} validation rows, in {arguments.output}")


if __name__ == "__main__":
    main()
