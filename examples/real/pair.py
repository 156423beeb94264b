"""A recipe on a pair of pretrained models: training, and every row of the report that can speak against it.

    python examples/real/pair.py --host /models/qwen-1.5b --generator /models/qwen-0.5b \
        --train data/a.json data/b.json --test data/c.json --output runs/real/pair

Two commands are run, `semcot distill` (by default with `--recipe words`) and `semcot evaluate`, and with
`--align_flags` before them `semcot align`, whose encoder the second then gets; each goes on where it was cut off.
Training questions that are among the test questions are left out. `verdicts.jsonl.gz` keeps every verdict.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from verdicts import write_verdicts

from semcot_hf import load_reasoning_dataset
from semcot_hf.data.splits import normalise_question
from semcot_hf.storage import check_same_run, text_digest, write_json, write_json_lines

# What determines the data and the model of a folder. `semcot evaluate` refuses another evaluation in its own folder.
DETERMINING = ("host", "generator", "recipe", "max_train_rows", "seed", "align_flags", "encoder", "distill_flags")


def rows_of(paths: list[str]) -> list[dict]:
    """Return the rows of files, each taken whole."""
    return [dict(row) for path in paths for split in load_reasoning_dataset(path).values() for row in split]


def prepare(arguments: argparse.Namespace, folder: Path) -> Path:
    """Write train.jsonl and test.jsonl, once; raise ValueError for a folder of other models, flags or rows."""
    test = rows_of([arguments.test])
    asked = {normalise_question(row["query"]) for row in test}
    train = [row for row in rows_of(arguments.train) if normalise_question(row["query"]) not in asked]
    settings = {name: getattr(arguments, name) for name in DETERMINING}
    settings["rows"] = text_digest([json.dumps(rows) for rows in (train, test)])
    kept, data = folder / "settings.json", folder / "data"
    if kept.is_file() or (folder / "model").is_dir():
        remedy = "Choose another folder, or delete this one."
        found = json.loads(kept.read_text()) if kept.is_file() else {}
        check_same_run(found, settings, place=f"--output {folder}", remedy=remedy)
    else:
        data.mkdir(parents=True, exist_ok=True)
        write_json_lines(data / "train.jsonl", train[: arguments.max_train_rows])
        write_json_lines(data / "test.jsonl", test)
        write_json(kept, settings)
    return data


def semcot(*words: object) -> None:
    """Run a command of this package in a process of its own, which frees its memory."""
    subprocess.run([sys.executable, "-m", "semcot_hf.cli.main", *map(str, words)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", required=True, help="Id or path of the host.")
    parser.add_argument("--generator", required=True, help="Id or path of the generator.")
    parser.add_argument("--train", nargs="+", required=True, help="Files of training rows.")
    parser.add_argument("--test", required=True, help="File of test rows.")
    parser.add_argument("--output", required=True, help="Folder of data, model and report.")
    parser.add_argument("--recipe", default="words", help="Recipe of semcot distill.")
    parser.add_argument("--max_train_rows", type=int, default=1000, help="Use at most this many training rows.")
    parser.add_argument("--seed", type=int, default=42, help="Seed of the training.")
    parser.add_argument("--align_flags", help="Flags of semcot align, in one text; without them there is no stage 1.")
    parser.add_argument("--encoder", help="Folder of stage 1's encoder, trained if it is missing (output/encoder).")
    parser.add_argument("--distill_flags", default="", help="Further flags of semcot distill, in one text.")
    parser.add_argument("--evaluate_flags", default="", help="Further flags of semcot evaluate, in one text.")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    data, model = prepare(arguments, folder), folder / "model"
    encoder = Path(arguments.encoder or folder / "encoder")
    if arguments.align_flags is not None and not (encoder / "modules.json").is_file():
        flags = shlex.split(arguments.align_flags)
        given = ("--host", arguments.host, "--dataset", data, "--output_dir", encoder, "--seed", arguments.seed)
        semcot("align", *given, *flags)
    if not all((model / name).is_file() for name in ("train_results.json", "config.json")):
        models = ("--host", arguments.host, "--generator", arguments.generator)
        again = ("--save_strategy", "steps", "--save_steps", 50, "--save_total_limit", 1)
        if any(model.glob("checkpoint-*")):
            again += ("--resume_from_checkpoint", "True")
        given = ("--dataset", data, "--output_dir", model, "--seed", arguments.seed, "--count_operations", "True")
        if arguments.align_flags is not None:
            given += ("--alignment_encoder", encoder)
        semcot("distill", "--recipe", arguments.recipe, *models, *given, *again, *shlex.split(arguments.distill_flags))
    report = folder / "report"
    flags = shlex.split(arguments.evaluate_flags)
    semcot("evaluate", "--model", model, "--dataset", data, "--output_dir", report, *flags)
    write_verdicts(report, folder / "verdicts.jsonl.gz", training=model / "train_results.json")


if __name__ == "__main__":
    main()
