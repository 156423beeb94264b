"""`evaluate`: accuracy, latency and controls of a model on a dataset, with every answer stored; resumable."""

import json
import random
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..answers import check_answer, extract_answer, infer_answer_type
from ..answers.check import as_text
from ..data.rationale import rationale_agrees
from ..data.schema import count_steps
from ..inference.answering import Answer, Answerer, EmbeddingsFor
from ..inference.batches import plan_batches
from ..inference.escalating import alignment_similarity, escalation_argument, rule_of
from ..inference.prompting import FEW_SHOT_METHODS
from ..inference.settings import (
    TEXT_METHODS,
    AnswerSettings,
    check_method,
    makes_implicit_tokens,
    methods_of,
    read_thought_prompt,
    with_overrides,
)
from ..inference.templates import check_shown, few_shot_messages
from ..modeling.escalation_semcot import Escalation
from ..progress import Update, progress_bar
from ..storage import config_digest, text_digest, weights_digest, write_atomically, write_json
from .config import EvaluationConfig
from .controls import CONTROLS, ControlTokens
from .environment import environment
from .escalation_report import summarize_escalation
from .latency import measure_latency, process_peak_memory
from .plots import save_plots
from .predictions import Predictions, open_run
from .report import markdown_report
from .summary import count_name, summarize

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Job:
    """How one file of predictions is made."""

    name: str
    answerer: Answerer
    prompts: list[list[int]]
    embeddings: EmbeddingsFor | None = None


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: EvaluationConfig | None = None,
    *,
    few_shot: Sequence[Mapping[str, Any]] = (),
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> dict[str, Any]:
    """Evaluate a SemCoT model, or any causal LM without implicit tokens, on a dataset.

    Answers are generated greedily and judged by `check_answer`. In `output_dir` each method stores its answers batch
    by batch (`predictions-<method>.jsonl`). Called again there after a kill, `evaluate` continues, and its report is
    the same except for the times. Times that a report there has of the same methods and questions on the same machine
    and versions are not measured again. The report (`report.json`, `report.md`, plots) is written at the end.

    Args:
        model: the model, put into evaluation mode.
        tokenizer: its tokenizer.
        dataset: `datasets.Dataset` or list of rows with `query`, `answer` and, for the accuracy by number of steps,
            `steps`.
        config: see `EvaluationConfig`.
        few_shot: rows with query, reasoning and answer that are shown before each question (plain causal LMs only).
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `methods` and `output_dir`.

    Returns:
        The report: `answer_type`, `rows`, `controls`, `environment`, `command`, `seed`, `verdict`,
        `tokens_carry_reasoning`, `comparisons`, `by_k`, `escalation`, `latency`, `model`, `dataset`, `max_new_tokens`,
        `max_reasoning_tokens`, `cot_instruction`, `batch_size`. Accuracies are fractions.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for options that do not fit the model or the dataset, for worked examples that show one of the
            questions, for a gold answer that is not of the answer type, for a question that exceeds the context, or
            for an `output_dir` that belongs to another run.
    """
    config = with_overrides(config or EvaluationConfig(), overrides)
    rows = list(dataset)
    queries, golds = [row["query"] for row in rows], [as_text(row["answer"], "answer") for row in rows]
    methods = tuple(methods_of(model) if config.methods is None else config.methods)
    if config.escalate is not None and "escalated" not in methods:
        methods = (*methods, "escalated")
    controls = config.controls and makes_implicit_tokens(model)
    settings = AnswerSettings(
        max_new_tokens=config.max_new_tokens,
        max_reasoning_tokens=config.max_reasoning_tokens,
        answer_prompt=config.answer_prompt,
        cot_instruction=config.cot_instruction,
        few_shot=few_shot,
        chat=config.chat,
        thought_prompt=None if config.thought_prompt is None else read_thought_prompt(config.thought_prompt),
        escalation=escalation_argument(config.escalate),
        num_candidates=config.num_candidates,
    )
    if not rows:
        raise ValueError("dataset is empty: evaluate needs at least one question.")
    for method in methods:
        check_method(model, with_overrides(settings, {"method": method}))
    if controls and not {"no_cot", "semcot"} <= {*methods}:
        raise ValueError(
            f"methods={methods} leaves out what the controls are compared with: add 'no_cot' and 'semcot', or pass "
            "controls=False."
        )
    if controls and len(rows) < 2:
        raise ValueError("controls need at least 2 questions, dataset has 1: add questions, or pass controls=False.")
    rule = rule_of(model, settings, "escalated") if "escalated" in methods else None
    _check_used(config, methods, rule)
    shown = [row["query"] for row in few_shot]
    if config.chat is not False and {*methods} & {*FEW_SHOT_METHODS}:
        shown += [message["content"] for message in few_shot_messages(tokenizer) if message["role"] == "user"]
    check_shown(shown, queries)
    answer_type = infer_answer_type(golds) if config.answer_type is None else config.answer_type
    for index, gold in enumerate(golds):
        try:
            check_answer("", gold, answer_type)
        except ValueError as error:
            raise ValueError(f"dataset row {index}: {error}") from error
    own_examples = config.thought_prompt or getattr(model.config, "thought_prompt_ids", None)
    if "condensed" in methods and answer_type != "numeric" and not own_examples:
        logger.warning(
            "methods has 'condensed', whose worked examples are equations, but the answers are of the type %r: show "
            "examples of these questions by thought_prompt, a JSON file of chat messages.",
            answer_type,
        )

    jobs, prompts_digest = _make_jobs(model, tokenizer, settings, methods, controls, config, queries)
    for job in jobs:
        for index, prompt in enumerate(job.prompts):
            problem = job.answerer.context_problem(prompt)
            if problem is not None:
                raise ValueError(f"dataset row {index}, {job.name}: {problem}, or leave out the row or the method.")
    folder = None if config.output_dir is None else Path(config.output_dir)
    fingerprint: dict[str, Any] | None = None
    model_name = config.model_name or model.config.name_or_path or model.config.model_type
    if folder is not None:
        fingerprint = {
            "model": model_name,
            "config": config_digest(model),
            "weights": weights_digest(model),
            "dataset": text_digest(zip(queries, golds, strict=True)),
            "prompts": prompts_digest,
            "answer_type": answer_type,
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "compiled_generator": getattr(model, "_compiled_tokens", None) is not None,
        }
        if config.cot_instruction:
            fingerprint["cot_instruction"] = config.cot_instruction
        if config.max_reasoning_tokens is not None:
            fingerprint["max_reasoning_tokens"] = config.max_reasoning_tokens
        if config.max_thought_tokens is not None:
            fingerprint["max_thought_tokens"] = config.max_thought_tokens
        if config.num_candidates is not None:
            fingerprint["num_candidates"] = config.num_candidates
        if config.signals:
            fingerprint["signals"] = [*config.signals, config.alignment_encoder]
        if rule is not None:
            fingerprint["escalation"] = rule.to_dict()
            if "similarity" in rule.all_signals:
                fingerprint["alignment_encoder"] = config.alignment_encoder
        if settings.thought_prompt is not None:
            fingerprint["thought_prompt"] = text_digest(settings.thought_prompt)
        open_run(folder, fingerprint, overwrite=config.overwrite)

    sampled = random.Random(config.seed).sample(queries, min(config.latency_samples, len(queries)))
    latency = None
    with ExitStack() as files:
        runs: dict[str, Predictions] = {}
        for job in jobs:
            plan = plan_batches([len(prompt) for prompt in job.prompts], config.batch_size)
            path = folder and folder / f"predictions-{job.name}.jsonl"
            runs[job.name] = files.enter_context(closing(Predictions(path, plan, fingerprint)))
        total = sum(_work(job.name, len(queries)) for job in jobs)
        total += sum(_work(name, len(sampled)) for name in methods) * len(config.latency_batch_sizes)
        done = sum(_work(name, len(run.records)) for name, run in runs.items())
        with progress_bar("evaluate", total, done, progress) as advance:
            for job in jobs:
                run = runs[job.name]
                job.answerer.keeps_thoughts = job.embeddings is None
                if few_shot and run.batches:
                    job.answerer.share_prefix(job.prompts)
                for indices, answers in job.answerer.batches(
                    job.prompts, run.batches, implicit_embeddings_for=job.embeddings
                ):
                    run.append(
                        [
                            _record(index, queries[index], golds[index], answer, answer_type)
                            for index, answer in zip(indices, answers, strict=True)
                        ]
                    )
                    advance(_work(job.name, len(indices)), job.name)
                job.answerer.keeps_thoughts = False
            if sampled:
                answerers = {job.name: job.answerer for job in jobs if job.name in methods}
                latency = _latency(answerers, sampled, config.latency_batch_sizes, advance, folder)

    made = {name: run.in_order() for name, run in runs.items()}
    own = getattr(model.config, "escalation", None)
    report = {
        "answer_type": answer_type,
        **summarize(
            made,
            steps=_step_counts(rows),
            implicit_tokens=model.config.num_implicit_tokens if makes_implicit_tokens(model) else 0,
            latency=latency and latency["methods"],
            seed=config.seed,
        ),
        "escalation": summarize_escalation(
            made,
            rule=None if own is None else Escalation.from_dict(own),
            latency=latency and latency["methods"],
            seed=config.seed,
        ),
        "environment": environment(jobs[0].answerer.device),
        "command": shlex.join(sys.argv) if config.command is None else config.command,
        "seed": config.seed,
        "model": model_name,
        "dataset": config.dataset_name,
        "max_new_tokens": config.max_new_tokens,
        "max_reasoning_tokens": settings.reasoning_limit,
        "cot_instruction": config.cot_instruction,
        "batch_size": config.batch_size,
        "latency": latency,
    }
    if folder is not None:
        save_plots(report, folder)
        write_atomically(folder / "report.md", markdown_report(report))
        write_json(folder / "report.json", report)
    return report


def _check_used(config: EvaluationConfig, methods: Sequence[str], rule: Escalation | None) -> None:
    """Raise a ValueError for options that no method, or no signal of the rule of "escalated", would use."""
    for name, method in (
        ("signals", "semcot"),
        ("token_counts", "semcot"),
        ("thought_prompt", "condensed"),
        ("max_thought_tokens", "condensed"),
        ("cot_instruction", "cot"),
    ):
        value = getattr(config, name)
        if value and method not in methods:
            raise ValueError(
                f"{name}={value!r} is of the method {method!r}, got methods={methods}: leave it out, or add this one."
            )
    if config.alignment_encoder and "similarity" not in (*config.signals, *(rule.all_signals if rule else ())):
        raise ValueError(
            f"alignment_encoder={config.alignment_encoder!r} is for the signal 'similarity', which neither "
            f"signals={config.signals} nor a rule of 'escalated' reads: leave it out, or add the signal."
        )
    if config.cot_instruction and ("escalated" in methods or config.signals):
        raise ValueError(
            f"cot_instruction={config.cot_instruction!r}: escalation asks questions alone, so explicit CoT would not "
            f"be what it escalates to. Leave it out, or 'escalated' and signals (methods={methods}, "
            f"signals={config.signals})."
        )


def _make_jobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: AnswerSettings,
    methods: Sequence[str],
    controls: bool,
    config: EvaluationConfig,
    queries: list[str],
) -> tuple[list[_Job], str]:
    """Return the jobs of the methods, further token counts and controls, and a digest of their prompts."""

    encoder = config.alignment_encoder
    similarity = None if encoder is None else alignment_similarity(model, encoder)

    def answerer(method: str, count: int | None = None, signals: Sequence[str] = ()) -> Answerer:
        own = {"method": method, "num_implicit_tokens": count, "signals": signals}
        made = Answerer(model, tokenizer, with_overrides(settings, own))
        if similarity is not None:
            made.signal_functions["similarity"] = similarity
        return made

    direct = list(answerer("no_cot").prompts(queries))
    words = list(answerer("cot").prompts(queries if "cot" in methods else queries[:1]))
    jobs, digested = [], [*direct, words[0]]
    shown = direct
    if getattr(model.config, "few_shot_ids", None):
        shown = list(answerer("semcot").prompts(queries))
        digested += shown[:1]
    for method in methods:
        signals = config.signals if method == "semcot" else ()
        prompts = words if method == "cot" else shown if method in FEW_SHOT_METHODS else direct
        limit = config.max_thought_tokens if method == "condensed" else None
        job = _Job(method, answerer(method, limit, signals), prompts)
        if method == "condensed":
            job = replace(job, prompts=list(job.answerer.prompts(queries)))
        jobs.append(job)
    for count in sorted({*config.token_counts} - {getattr(model.config, "num_implicit_tokens", None)}):
        jobs.append(_Job(count_name(count), answerer("semcot", count), shown))
    if controls:
        tokens = ControlTokens(
            model,
            shown,
            batch_size=config.batch_size,
            seed=config.seed,
            num_candidates=config.num_candidates,
        )
        names = [control for control in CONTROLS if control != "none"]
        jobs += [_Job(name, answerer("semcot"), shown, partial(tokens.embeddings, name)) for name in names]
    return jobs, text_digest(digested)


def _work(name: str, questions: int) -> int:
    """Return the work of some questions in units of direct answers: about ten for long reasoning, two for short."""
    return questions * (10 if name == "cot" else 2 if name in (*TEXT_METHODS, "escalated") else 1)


def _step_counts(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return each question's number of reasoning steps; 0 for all where most rationales do not show it."""
    counts = [count_steps(row.get("reasoning") or "", row.get("steps") or []) for row in rows]
    return counts if 2 * sum(count > 0 for count in counts) > len(counts) else [0] * len(counts)


def _record(index: int, query: str, gold: str, answer: Answer, answer_type: str) -> dict[str, Any]:
    thought: dict[str, Any] = {}
    if answer.implicit_tokens is not None:
        thought = {"implicit_tokens": answer.implicit_tokens, "thought_ended": answer.thought_ended}
    if answer.thought is not None:
        thought |= {
            "thought": answer.thought,
            "thought_tokens": answer.thought_tokens,
            "thought_ended": answer.thought_ended,
            "thought_right": rationale_agrees(answer.thought, gold, answer_type),
        }
    if answer.lost_probability is not None:
        thought |= {"lost_probability": answer.lost_probability, "thought_as_text": answer.thought_as_text}
    if answer.signals is not None:
        thought |= {"confidence": answer.confidence, "route": answer.route, "signals": answer.signals}
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
        **thought,
    }


def _latency(
    answerers: Mapping[str, Answerer],
    queries: Sequence[str],
    batch_sizes: Sequence[int],
    advance: Update,
    folder: Path | None,
) -> dict[str, Any]:
    def call(answerer: Answerer, batch: list[str]) -> None:
        answerer.answers(batch, batch_size=len(batch))

    device = next(iter(answerers.values())).device
    kept = None if folder is None else _reported_latency(folder / "report.json", environment(device))
    sizes = [min(size, len(queries)) for size in batch_sizes]
    if kept is not None and kept["samples"] == len(queries) and set(kept["methods"]) == set(answerers):
        if all([row["batch_size"] for row in rows] == sizes for rows in kept["methods"].values()):
            for method in answerers:
                advance(_work(method, len(queries)) * len(sizes), f"latency of {method}")
            return kept
    measured = measure_latency(
        {method: partial(call, answerer) for method, answerer in answerers.items()},
        queries,
        device=device,
        batch_sizes=batch_sizes,
        progress=lambda method, count: advance(_work(method, count), f"latency of {method}"),
    )
    memory = None if device.type == "cuda" else process_peak_memory()
    return {"samples": len(queries), "process_peak_memory_bytes": memory, "methods": measured}


def _reported_latency(path: Path, here: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the times of a whole report that was written in the environment `here`, if there is one."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return report.get("latency") if report.get("environment") == here else None
