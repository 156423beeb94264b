"""Seconds a question of SemCoT models and of their host; with captured graphs where tokens come in one pass.

    python examples/gpu/latency.py --models runs/gpu/words/model runs/gpu/paper/model --test gsm8k/test.txt \\
        --output runs/gpu/latency.json

The questions are those of the most frequent length in tokens, since a captured graph belongs to one shape. A
sequential generator is not captured: its steps would be one graph of all layers times all steps. On a CPU nothing is
captured; the compiled row then runs torch's tracing alone, to show that it works.
"""

import argparse
import copy
import json
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from semcot_hf import load_reasoning_dataset
from semcot_hf.evaluation import measure_latency
from semcot_hf.inference.answering import Answerer
from semcot_hf.inference.settings import AnswerSettings


def same_length(queries: list[str], lengths: list[int], count: int) -> list[str]:
    """Return up to `count` questions of the most frequent length.

    >>> same_length(["a", "bb", "cc", "dd"], [1, 2, 2, 2], 2)
    ['bb', 'cc']
    """
    groups = defaultdict(list)
    for query, length in zip(queries, lengths, strict=True):
        groups[length].append(query)
    return max(groups.values(), key=len)[:count]


def rows_of(path: str, queries: list[str], arguments: argparse.Namespace) -> list[dict]:
    """Return the figures of one model; the host of the first one also reasons at length."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    models = {"no_cot": ("no_cot", model), "semcot": ("semcot", model)}
    if path == arguments.models[0]:
        models["cot"] = ("cot", model)
    if model.config.generator_mode == "parallel":
        compiled = copy.copy(model)
        captured = {"mode": "reduce-overhead", "dynamic": False}
        compiled.compile_generator(**(captured if device.type == "cuda" else {"backend": "eager"}))
        models["semcot, captured" if device.type == "cuda" else "semcot, traced"] = ("semcot", compiled)
    limits = {name: getattr(arguments, name) for name in ("max_new_tokens", "max_reasoning_tokens")}
    answerers = {
        name: Answerer(each, tokenizer, AnswerSettings(method=method, **limits))
        for name, (method, each) in models.items()
    }
    lengths = [len(prompt) for prompt in answerers["semcot"].prompts(queries)]
    chosen = same_length(queries, lengths, arguments.samples)

    def call(answerer: Answerer):
        return lambda batch: answerer.answers(batch, batch_size=len(batch))

    calls = {name: call(answerer) for name, answerer in answerers.items()}
    measured = measure_latency(calls, chosen, device=device, batch_sizes=arguments.batch_sizes)
    return [{"model": path, "method": name, **row} for name, rows in measured.items() for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, help="SemCoT checkpoints.")
    parser.add_argument("--test", required=True, help="File of test rows.")
    parser.add_argument("--output", required=True, help="JSON file of the figures.")
    parser.add_argument("--samples", type=int, default=20, help="Questions.")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1], help="Questions at once.")
    parser.add_argument("--max_new_tokens", type=int, default=24, help="Longest answer.")
    parser.add_argument("--max_reasoning_tokens", type=int, default=300, help="Longest chain of explicit CoT.")
    arguments = parser.parse_args(argv)
    if missing := [path for path in arguments.models if not Path(path).is_dir()]:
        parser.error(f"--models {' '.join(missing)}: not there; run the steps that train them first.")
    queries = [row["query"] for rows in load_reasoning_dataset(arguments.test).values() for row in rows]
    rows = [row for path in arguments.models for row in rows_of(path, queries, arguments)]
    with open(arguments.output, "w") as file:
        limits = {name: getattr(arguments, name) for name in ("max_new_tokens", "max_reasoning_tokens")}
        json.dump({**limits, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
