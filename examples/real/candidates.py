"""Candidate thoughts of a checkpoint, and what each rule of choosing among them is worth.

    python examples/real/candidates.py --model runs/real/pair/model --data runs/real/pair/data/test.jsonl \
        --output runs/real/candidates.jsonl.gz --num_candidates 8

For each question the most probable words and others, with their log-probabilities by generator and host. A candidate
is right if its words state the answer or end in a calculation of it; "most frequent result" is self-consistency. The
host's answers after the most probable words ("first") and the chosen candidate are kept. Goes on where it was cut off.
"""

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

import torch
from kept import kept_rows
from pair import rows_of
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM
from semcot_hf.answers import check_answer, extract_answer
from semcot_hf.data.equations import completed
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.prompting import pad_left
from semcot_hf.inference.settings import AnswerSettings

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
ANSWERED = ("first", "chosen")


def chosen(row: dict, weight: float) -> dict:
    """Return the candidate with the highest score."""
    return max(row["candidates"], key=lambda one: one["generator"] + weight * one["host"])


def most_frequent(row: dict) -> dict:
    """Return the first candidate with the most frequent result; thoughts without one do not count."""
    counts = Counter(one["result"] for one in row["candidates"] if one["result"] is not None)
    return max(row["candidates"], key=lambda one: counts[one["result"]])


def rules(rows: list[dict]) -> dict[str, int]:
    """Return the number of right thoughts by the name of the rule that chooses them."""
    firsts = [row["candidates"][0] for row in rows]
    found = {"most probable words": firsts, "most frequent result": list(map(most_frequent, rows))}
    for weight in WEIGHTS:
        name = "the generator's probability" if weight == 0 else f"both, the host's with weight {weight:g}"
        found[name] = [chosen(row, weight) for row in rows]
    counts = {name: sum(one["right"] for one in row) for name, row in found.items()}
    counts["any"] = sum(any(one["right"] for one in row["candidates"]) for row in rows)
    return counts | {f"the host's answer, {name}": sum(row[name]["right"] for row in rows) for name in ANSWERED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="A SemCoT checkpoint whose words end in the answer.")
    parser.add_argument("--data", required=True, help="File of questions.")
    parser.add_argument("--output", required=True, help="File of the candidates.")
    parser.add_argument("--num_candidates", type=int, default=8, help="Candidates of each question.")
    parser.add_argument("--host_weight", type=float, default=0.5, help="Of the choice after which the host answers.")
    parser.add_argument("--batch_size", type=int, default=8, help="Questions at once.")
    arguments = parser.parse_args()
    path = Path(arguments.output)
    found = kept_rows(path, vars(arguments), "model", "data", "num_candidates", "host_weight")
    model = SemCoTForCausalLM.from_pretrained(arguments.model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    reader = model.words_tokenizer() if model.config.separate_generator_tokenizer else tokenizer
    rows = rows_of([arguments.data])
    model.config.num_candidates = number = arguments.num_candidates
    answerer = Answerer(model, tokenizer, AnswerSettings(method="semcot", max_new_tokens=24))
    prompts = list(answerer.prompts([row["query"] for row in rows]))
    while len(found) < len(rows):
        part = range(len(found), min(len(found) + arguments.batch_size, len(rows)))
        thoughts, generator, host = model.candidate_thoughts(*pad_left([prompts[index] for index in part], 0))
        texts = reader.batch_decode([[word for word in said if word >= 0] for said in thoughts.words.tolist()])
        made = []
        for place, (text, own, read) in enumerate(zip(texts, generator.tolist(), host.tolist(), strict=True)):
            whole, answer = completed(text), rows[part[place // number]]["answer"]
            judged = {"result": extract_answer(whole, "numeric"), "right": check_answer(whole, answer, "numeric")}
            made.append({"thought": text, "generator": round(own, 3), "host": round(read, 3), **judged})
        new = [{"index": i, "candidates": made[p * number : (p + 1) * number]} for p, i in enumerate(part)]
        best = [row["candidates"].index(chosen(row, arguments.host_weight)) for row in new]
        for name, taken in zip(ANSWERED, ([0] * len(new), best), strict=True):
            kept = torch.tensor(taken) + torch.arange(len(new)) * number
            tokens = (thoughts.embeddings[kept], thoughts.mask[kept])
            answers = next(answerer.parts(prompts, part, implicit_embeddings_for=lambda _, tokens=tokens: tokens))[1]
            for row, output in zip(new, (answer.output for answer in answers), strict=True):
                row[name] = {"output": output, "right": check_answer(output, rows[row["index"]]["answer"], "numeric")}
        found += new
        with gzip.open(path, "at") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
        print(f"{len(found)} of {len(rows)}", flush=True)
    for name, count in rules(found).items():
        print(f"| {name} | {count} of {len(found)} |")


if __name__ == "__main__":
    main()
