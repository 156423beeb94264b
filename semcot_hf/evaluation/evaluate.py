"""`evaluate`: accuracy, cost and controls of a model on a dataset, with every answer kept, resumable."""

import random
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..answers import check_answer, extract_answer, infer_answer_type
from ..inference.answering import (
    NEXT_QUESTION,
    answer_batches,
    answer_prompt_of,
    answer_questions,
    check_answer_prompt,
    check_method,
    encode_prompts,
    makes_implicit_tokens,
    methods_of,
    plan_batches,
    uses_chat,
)
from ..progress import progress_bar
from .controls import CONTROLS, ControlTokens
from .environment import environment
from .latency import measure_latency, process_peak_memory
from .plots import save_plots
from .predictions import Predictions, config_digest, open_run, text_digest, to_json, weights_digest, write_atomically
from .report import markdown_report
from .summary import count_name, summarize


@dataclass(frozen=True)
class _Job:
    """What one file of predictions is made by."""

    name: str
    prompts: list[list[int]]
    count: int = 0
    embeddings: Callable[[list[int]], torch.Tensor] | None = None


def evaluate(
    model,
    tokenizer,
    dataset,
    *,
    answer_type: str | None = None,
    methods: Sequence[str] | None = None,
    controls: bool = True,
    token_counts: Sequence[int] = (),
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    answer_prompt: str | None = None,
    few_shot: Sequence[Mapping] = (),
    chat: bool | None = None,
    seed: int = 0,
    latency_samples: int = 50,
    latency_batch_sizes: Sequence[int] = (1,),
    model_name: str | None = None,
    dataset_name: str | None = None,
    command: str | None = None,
    progress: bool | Callable[[str, float], None] = True,
) -> dict:
    """Evaluate a SemCoT model, or any causal LM without implicit tokens, on a dataset.

    Every answer is generated greedily and judged by `check_answer`. In `output_dir` each method keeps its answers as
    they come (`predictions-<method>.jsonl`); called again there after a kill, `evaluate` goes on where it was, and
    its report is the same but for the times. Reports (`report.json`, `report.md`, plots) are written at the end.

    Args:
        model, tokenizer: the model, put into evaluation mode, and its tokenizer.
        dataset: `datasets.Dataset` (or a list of rows) with `query`, `answer` and, for the accuracy by number of
            steps, `steps`.
        answer_type: of `check_answer`; inferred from the answers when `None`.
        methods: of "no_cot", "cot" and "semcot"; all that the model has when `None`.
        controls: whether a SemCoT model is also run on no implicit tokens (the answers of no_cot, which are that),
            on another question's, on their mean and on noise.
        token_counts: further numbers of implicit tokens to run "semcot" with.
        output_dir: folder of predictions and reports; `None` writes nothing.
        overwrite: discards another run's predictions in `output_dir`.
        batch_size, max_new_tokens, few_shot, chat: see `answer_questions`.
        answer_prompt: text behind the generation prompt; when `None` the one that a SemCoT model was trained with, or
            else `ANSWER_PROMPT`.
        seed: of the controls, the bootstrap and the choice of questions for latency.
        latency_samples: questions that latency is measured on; 0 leaves it out.
        latency_batch_sizes: batch sizes that it is measured at; the report's rows give the first.
        model_name, dataset_name, command: what the report calls them; the model's path and the command line of this
            process when `None`.
        progress: see `progress_bar`.

    Returns:
        The report: `answer_type`, `rows`, `controls`, `environment`, `command`, `seed`, and besides `verdict`,
        `tokens_carry_reasoning`, `comparisons`, `by_k`, `latency`, `model`, `dataset`. Accuracies are fractions.

    Raises:
        ValueError: for arguments that do not fit the model or the dataset, for a gold answer that is none, or for an
            `output_dir` that belongs to another run.
    """
    rows = list(dataset)
    queries, golds = [row["query"] for row in rows], [row["answer"] for row in rows]
    methods = tuple(methods_of(model) if methods is None else methods)
    controls = controls and makes_implicit_tokens(model)
    _check_arguments(model, queries, methods, controls, token_counts, few_shot)
    answer_type = infer_answer_type(golds) if answer_type is None else answer_type
    for index, gold in enumerate(golds):
        try:
            check_answer("", gold, answer_type)
        except ValueError as error:
            raise ValueError(f"dataset row {index}: {error}") from error
    chat = uses_chat(tokenizer, chat)
    encode = partial(encode_prompts, tokenizer, few_shot=few_shot, chat=chat)
    if answer_prompt is None:
        answer_prompt = answer_prompt_of(model, tokenizer)
    direct = encode(queries, method="no_cot", answer_prompt=answer_prompt)
    check_answer_prompt(model, direct[0], answer_prompt)
    words = encode(queries, method="cot", answer_prompt=answer_prompt) if "cot" in methods else []

    model.eval()
    jobs = _jobs(model, methods, controls, token_counts, direct, words, batch_size, seed)
    folder = None if output_dir is None else Path(output_dir)
    model_name = model_name or model.config.name_or_path or model.config.model_type
    if folder is not None:
        fingerprint = {
            "model": model_name,
            "config": config_digest(model),
            "weights": weights_digest(model),
            "dataset": text_digest(zip(queries, golds, strict=True)),
            "prompts": text_digest([*direct, *encode(queries[:1], method="cot", answer_prompt=answer_prompt)]),
            "answer_type": answer_type,
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "seed": seed,
            "compiled_generator": getattr(model, "_compiled_tokens", None) is not None,
        }
        open_run(folder, fingerprint, overwrite=overwrite)

    plans = {job.name: plan_batches([len(prompt) for prompt in job.prompts], batch_size) for job in jobs}
    runs = {
        job.name: Predictions(folder and folder / f"predictions-{job.name}.jsonl", plans[job.name]) for job in jobs
    }
    sampled = random.Random(seed).sample(queries, min(latency_samples, len(queries)))
    total = sum(_work(job.name, len(queries)) for job in jobs)
    total += sum(_work(name, len(sampled)) for name in methods) * len(latency_batch_sizes)
    done = sum(_work(name, len(run.records)) for name, run in runs.items())
    latency = None
    with progress_bar("evaluate", total, done, progress) as advance:
        for job in jobs:
            run = runs[job.name]
            for indices, answers in answer_batches(
                model,
                tokenizer,
                job.prompts,
                plans[job.name][run.done :],
                max_new_tokens=max_new_tokens,
                num_implicit_tokens=job.count,
                implicit_embeddings_for=job.embeddings,
                stop=None if chat else NEXT_QUESTION,
                shared_prefix=bool(few_shot),
            ):
                run.append(
                    [
                        _record(index, queries[index], golds[index], answer, answer_type)
                        for index, answer in zip(indices, answers, strict=True)
                    ]
                )
                advance(_work(job.name, len(indices)), job.name)
        if sampled:
            latency = _latency(
                model,
                tokenizer,
                methods,
                sampled,
                latency_batch_sizes,
                advance,
                max_new_tokens=max_new_tokens,
                answer_prompt=answer_prompt,
                few_shot=few_shot,
                chat=chat,
            )

    report = {
        "answer_type": answer_type,
        **summarize(
            {name: run.in_order() for name, run in runs.items()},
            steps=[len(row.get("steps") or []) for row in rows],
            implicit_tokens=model.config.num_implicit_tokens if makes_implicit_tokens(model) else 0,
            latency=latency and latency["methods"],
            seed=seed,
        ),
        "environment": environment(model.get_input_embeddings().weight.device),
        "command": shlex.join(sys.argv) if command is None else command,
        "seed": seed,
        "model": model_name,
        "dataset": dataset_name,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "latency": latency,
    }
    if folder is not None:
        save_plots(report, folder)
        write_atomically(folder / "report.md", markdown_report(report))
        write_atomically(folder / "report.json", to_json(report))
    return report


def _check_arguments(model, queries, methods, controls, token_counts, few_shot):
    if not queries:
        raise ValueError("dataset is empty: evaluate needs at least one question.")
    if not methods:
        raise ValueError(f"methods is empty: choose among {', '.join(methods_of(model))}.")
    for method in methods:
        check_method(model, method, few_shot=few_shot)
    if controls and not {"no_cot", "semcot"} <= set(methods):
        raise ValueError(
            f"methods={methods} leaves out what the controls are compared with: add 'no_cot' and 'semcot', or pass "
            "controls=False."
        )
    if controls and len(queries) < 2:
        raise ValueError("controls need at least 2 questions, dataset has 1: add questions, or pass controls=False.")
    if token_counts and "semcot" not in methods:
        raise ValueError(f"token_counts={tuple(token_counts)} needs the method 'semcot', got methods={methods}.")


def _jobs(model, methods, controls, token_counts, direct, words, batch_size, seed):
    jobs = []
    for method in methods:
        if method == "semcot":
            jobs.append(_Job(method, direct, model.config.num_implicit_tokens))
        else:
            jobs.append(_Job(method, words if method == "cot" else direct))
    for count in sorted({*token_counts}):
        if count != model.config.num_implicit_tokens:
            jobs.append(_Job(count_name(count), direct, count))
    if controls:
        tokens = ControlTokens(model, direct, batch_size=batch_size, seed=seed)
        jobs += [
            _Job(control, direct, embeddings=partial(tokens.embeddings, control))
            for control in CONTROLS
            if control != "none"
        ]
    return jobs


def _work(name, questions):
    """Questions in units of direct answers: words cost about ten times as much, which keeps the time left honest."""
    return questions * (10 if name == "cot" else 1)


def _record(index, query, gold, answer, answer_type):
    return {
        "index": index,
        "question": query,
        "output": answer.output,
        "extracted": extract_answer(answer.output, answer_type),
        "answer": gold,
        "correct": check_answer(answer.output, gold, answer_type),
        "seconds": round(answer.seconds, 6),
        "new_tokens": answer.new_tokens,
        "finished": answer.finished,
    }


def _latency(model, tokenizer, methods, queries, batch_sizes, advance, **options):
    device = model.get_input_embeddings().weight.device

    def call(method, batch):
        answer_questions(model, tokenizer, batch, method=method, batch_size=len(batch), **options)

    measured = measure_latency(
        {method: partial(call, method) for method in methods},
        queries,
        device=device,
        batch_sizes=batch_sizes,
        progress=lambda method, count: advance(_work(method, count), f"latency of {method}"),
    )
    memory = None if device.type == "cuda" else process_peak_memory()
    return {"samples": len(queries), "process_peak_memory_bytes": memory, "methods": measured}
