"""Candidate thoughts of a checkpoint, and what each rule of choosing among them is worth.

    python examples/real/candidates.py --model runs/real/pair/model --data runs/real/pair/data/test.jsonl \
        --output runs/real/candidates.jsonl.gz --num_candidates 8

For each question the most probable words and others that are drawn, with their log-probabilities by the generator and
by the host (`SemCoTConfig`). A candidate is right if its words lead to the answer, so that no answers are generated:
the table is for words that end in the answer. "most frequent result" is self-consistency of the generator alone.
Goes on where it was cut off, after whole batches.
"""

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

from pair import rows_of
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer, extract_answer
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import pad_left
from semcot_hf.inference.settings import AnswerSettings

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)


def chosen(row: dict, weight: float) -> dict:
    """Return the candidate with the highest score, of several alike the first."""
    return max(row["candidates"], key=lambda one: one["generator"] + weight * one["host"])


def most_frequent(row: dict) -> dict:
    """Return the first candidate with the most frequent result."""
    counts = Counter(one["result"] for one in row["candidates"])
    return max(row["candidates"], key=lambda one: counts[one["result"]])


def rules(rows: list[dict]) -> dict[str, int]:
    """Return the number of right thoughts by the name of the rule that chooses them."""
    found = {"most probable words": [row["candidates"][0] for row in rows]}
    found["most frequent result"] = list(map(most_frequent, rows))
    for weight in WEIGHTS:
        name = "the generator's probability" if weight == 0 else f"both, the host's with weight {weight:g}"
        found[name] = [chosen(row, weight) for row in rows]
    counts = {name: sum(one["right"] for one in row) for name, row in found.items()}
    return {**counts, "any": sum(any(one["right"] for one in row["candidates"]) for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="A SemCoT checkpoint whose words end in the answer.")
    parser.add_argument("--data", required=True, help="File of questions.")
    parser.add_argument("--output", required=True, help="File of the candidates.")
    parser.add_argument("--num_candidates", type=int, default=8, help="Candidates of each question.")
    parser.add_argument("--temperature", type=float, default=1.0, help="Of the distributions drawn from.")
    parser.add_argument("--batch_size", type=int, default=8, help="Questions at once.")
    arguments = parser.parse_args()
    model = SemCoTForCausalLM.from_pretrained(arguments.model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model.config.num_candidates, model.config.candidate_temperature = arguments.num_candidates, arguments.temperature
    rows, output, found = rows_of([arguments.data]), Path(arguments.output), []
    prompts = list(Answerer(model, tokenizer, AnswerSettings()).prompts([row["query"] for row in rows]))
    if output.is_file():
        with gzip.open(output, "rt") as file:
            found = [json.loads(line) for line in file]
    while len(found) < len(rows):
        part = range(len(found), min(len(found) + arguments.batch_size, len(rows)))
        batch = pad_left([prompts[index] for index in part], 0)
        thoughts, generator, host = model.candidate_thoughts(*batch)
        texts = tokenizer.batch_decode([[word for word in said if word >= 0] for said in thoughts.words.tolist()])
        made = []
        for text, own, read in zip(texts, generator.tolist(), host.tolist(), strict=True):
            result = extract_answer(text, "numeric")
            made.append({"thought": text, "generator": round(own, 3), "host": round(read, 3), "result": result})
        number = arguments.num_candidates
        for place, index in enumerate(part):
            own = made[place * number : (place + 1) * number]
            judged = [{**one, "right": check_answer(one["thought"], rows[index]["answer"], "numeric")} for one in own]
            found.append({"index": index, "candidates": judged})
        with gzip.open(output, "at") as file:
            file.writelines(json.dumps(row) + "\n" for row in found[part.start :])
        print(f"{len(found)} of {len(rows)}", flush=True)
    for name, count in rules(found).items():
        print(f"| {name} | {count} of {len(found)} |")


if __name__ == "__main__":
    main()
