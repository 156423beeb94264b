"""Can a frozen host read several words in one implicit token? Thoughts whose neighbouring words are merged.

    python examples/real/merged_words.py --model runs/real/pair/model --data runs/real/pair/data \
        --verdicts examples/real/results/multiarith--qwen2.5-coder-1.5b--qwen2.5-coder-0.5b--words.jsonl.gz \
        --output runs/real/merged.jsonl.gz

The words that a trained generator wrote for each question (method "words" of the verdicts) are tokenized for the
host; each group of neighbours becomes one token, the mean of their embeddings or a weighted mean in which each word
weighs half of the one before it, so that their order can be told. Nothing is trained: this is what a generator that
predicted such tokens perfectly would give. One word a token is the reference. Goes on where it was cut off, by groups.
"""

import argparse
import gzip
import json
from pathlib import Path

import torch
from kept import kept_rows
from transformers import AutoTokenizer

from semcot_hf import SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.answers import check_answer
from semcot_hf.evaluation import answer_questions

# (words in a token, weight of a word relative to the one before it).
MERGES = ((1, 1.0), (2, 1.0), (2, 0.5), (3, 1.0), (3, 0.5), (4, 0.5))


def merged(words: torch.Tensor, size: int, decay: float) -> torch.Tensor:
    """Return the tokens of a thought: (words, hidden size) -> (groups, hidden size)."""
    weights = decay ** torch.arange(size, dtype=torch.float32)
    groups = [group.float() for group in words.split(size)]
    shares = [weights[: len(group), None] / weights[: len(group)].sum() for group in groups]
    return torch.stack([(share * group).sum(dim=0) for share, group in zip(shares, groups, strict=True)]).to(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="A SemCoT checkpoint with the host.")
    parser.add_argument("--data", required=True, help="Folder with test.jsonl.")
    parser.add_argument("--verdicts", required=True, help="File of verdicts with the words of each thought.")
    parser.add_argument("--output", required=True, help="File of the new verdicts.")
    parser.add_argument("--batch_size", type=int, default=32, help="Questions at once.")
    parser.add_argument("--max_new_tokens", type=int, default=24, help="Longest answer.")
    arguments = parser.parse_args()
    model = SemCoTForCausalLM.from_pretrained(arguments.model, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = [dict(row) for row in load_reasoning_dataset(arguments.data)["test"]]
    with gzip.open(arguments.verdicts, "rt") as file:
        said = {row["index"]: row["thought"] for row in map(json.loads, file) if row["method"] == "words"}
    output, table = Path(arguments.output), model.get_input_embeddings()
    rows = [{**row, "index": index, "thought": said[index]} for index, row in enumerate(rows) if index in said]
    ids = [tokenizer(row["thought"], add_special_tokens=False)["input_ids"] for row in rows]
    words = [table(torch.tensor(part, dtype=torch.long)) for part in ids]
    found = kept_rows(output, vars(arguments), "model", "data", "verdicts", "max_new_tokens")
    done = {tuple(row["merge"]) for row in found}
    for size, decay in MERGES:
        if (size, decay) in done:
            continue
        tokens = [merged(part.detach(), size, decay) for part in words]

        def given(indices: list[int], tokens: list[torch.Tensor] = tokens) -> tuple[torch.Tensor, torch.Tensor]:
            parts = [tokens[index] for index in indices]
            ones = [torch.ones(len(part), dtype=torch.long) for part in parts]
            return tuple(torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (parts, ones))

        answers = answer_questions(
            model,
            tokenizer,
            [row["query"] for row in rows],
            method="semcot",
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            implicit_embeddings_for=given,
        )
        verdicts = [
            {"merge": [size, decay], "index": row["index"], "tokens": len(part), "output": answer.output}
            | {"correct": check_answer(answer.output, row["answer"], "numeric")}
            for row, part, answer in zip(rows, tokens, answers, strict=True)
        ]
        with gzip.open(output, "at") as file:
            file.writelines(json.dumps(row) + "\n" for row in verdicts)
        right = sum(row["correct"] for row in verdicts)
        length = sum(row["tokens"] for row in verdicts) / len(verdicts)
        print(f"{size} words a token, weights {decay:g}: {right} of {len(verdicts)}, {length:.1f} tokens", flush=True)


if __name__ == "__main__":
    main()
