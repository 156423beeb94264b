"""`generate_file`: answers to the questions of a file in batches that fill the memory, resumable after a kill."""

import json
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..progress import progress_bar
from ..storage import Journal, check_same_run, config_digest, text_digest, weights_digest
from .answering import Answer, Answerer
from .batches import longest_first
from .question_file import QuestionFile
from .settings import AnswerSettings, with_overrides


@dataclass
class GenerateConfig:
    """How `generate_file` answers the questions of a file; the flags of `semcot generate`."""

    method: str | None = field(
        default=None,
        metadata={"help": "no_cot, cot or semcot; by default semcot for a SemCoT checkpoint and no_cot otherwise."},
    )
    num_implicit_tokens: int | None = field(
        default=None, metadata={"help": "Implicit tokens of semcot; by default the checkpoint's own number."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of one answer."})
    tokens_per_batch: int = field(
        default=16384,
        metadata={
            "help": "Most tokens of one batch: questions x (longest prompt + implicit tokens + max_new_tokens). "
            "Halved when memory is too small. It does not change the answers."
        },
    )
    chat: bool | None = field(
        default=None, metadata={"help": "Use the chat template; by default where the tokenizer has one."}
    )
    shared_prefix: str = field(
        default="auto",
        metadata={
            "help": "'auto' computes the beginning that all prompts share (system prompt, examples) once; 'off' does "
            "not. The generator reads whole prompts in any case."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the output, and discard unfinished work of other settings."}
    )
    model_name: str | None = field(
        default=None, metadata={"help": "Name of the model in the work file; by default its path."}
    )

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "tokens_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more.")
        if self.shared_prefix not in ("auto", "off"):
            raise ValueError(f"shared_prefix={self.shared_prefix!r}: must be 'auto' or 'off'.")


@dataclass(frozen=True)
class GenerateSummary:
    """Counts and times of one run.

    Attributes:
        questions: number of questions in the file.
        resumed: those that an earlier run answered.
        too_long: those left unanswered because they exceed the context.
        new_tokens, prompt_tokens: tokens generated and read by this run.
        host_columns: prompt columns, padding included, that the host computed in this run.
        shared_prefix: tokens of the shared beginning, which the host reads once.
        seconds: wall time of this run without loading the model.
        batches: number of batches of this run.
        halvings: how often memory was too small for a batch.
        peak_memory: bytes of GPU memory; `None` on CPU.
    """

    questions: int
    resumed: int
    too_long: int
    new_tokens: int
    prompt_tokens: int
    host_columns: int
    shared_prefix: int
    seconds: float
    batches: int
    halvings: int
    peak_memory: int | None

    def __str__(self) -> str:
        answered = self.questions - self.resumed - self.too_long
        seconds = max(self.seconds, 1e-9)
        parts = [f"{answered:,} questions answered in {self.seconds:,.1f} s"]
        if self.resumed:
            parts.append(f"{self.resumed:,} before")
        if self.too_long:
            parts.append(f"{self.too_long:,} too long")
        parts += [
            f"{self.prompt_tokens:,} tokens read and {self.new_tokens:,} written",
            f"{answered / seconds:,.1f} questions/s, {self.new_tokens / seconds:,.0f} tokens/s",
            f"{self.batches:,} batches, {self.halvings:,} halved",
        ]
        if self.shared_prefix:
            parts.append(f"shared prefix of {self.shared_prefix:,} tokens")
        if self.peak_memory is not None:
            parts.append(f"peak memory {self.peak_memory / 2**30:.2f} GiB")
        return "; ".join(parts) + "."


def generate_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: QuestionFile,
    config: GenerateConfig | None = None,
    *,
    progress: bool = True,
    **overrides: Any,
) -> GenerateSummary:
    """Answer the questions of a file greedily and write the answers in the file's order.

    Batches are made of questions of similar length, the longest first. Each is stored in a work file beside the
    output. Called again after a kill with the same settings, `generate_file` continues there, with the batches that
    the killed run would have made. The output appears only when it is complete.

    Args:
        model: a SemCoT model or any causal LM.
        tokenizer: its tokenizer.
        questions: see `read_questions`.
        config: see `GenerateConfig`.
        progress: whether to show a bar on a terminal.
        overrides: fields of the config.

    Returns:
        The counts. A question that exceeds the context has an `error` in its row and counts as too long.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for settings that do not fit the model, for a work file of other settings, or when memory is too
            small for one question.
    """
    config = with_overrides(config or GenerateConfig(), overrides)
    start, device = time.perf_counter(), model.get_input_embeddings().weight.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    settings = AnswerSettings(
        method=config.method,
        num_implicit_tokens=config.num_implicit_tokens,
        max_new_tokens=config.max_new_tokens,
        chat=config.chat,
    )
    answerer = Answerer(model, tokenizer, settings)
    # As lists, the ids of a large file would take nine times the memory.
    prompts = [array("i", prompt) for prompt in answerer.prompts(questions.queries)]
    problems = {row: answerer.context_problem(len(prompt)) for row, prompt in enumerate(prompts)}
    errors = {row: problem for row, problem in problems.items() if problem}
    fingerprint = {
        "model": config.model_name or model.config.name_or_path or model.config.model_type,
        "config": config_digest(model),
        "weights": weights_digest(model),
        "input": questions.digest,
        "prompts": text_digest(prompt.tolist() for prompt in prompts),
        "method": answerer.method,
        "num_implicit_tokens": answerer.num_implicit_tokens,
        "max_new_tokens": config.max_new_tokens,
        "shared_prefix": config.shared_prefix,
    }
    with WorkFile(questions.output, fingerprint, overwrite=config.overwrite) as work:
        resumed = len(work.answers)
        same_budget = work.budget is not None and work.budget[0] == config.tokens_per_batch
        answerer.tokens_per_batch = work.budget[1] if work.budget and same_budget else config.tokens_per_batch
        fitting = [row for row in range(len(prompts)) if row not in errors]
        if config.shared_prefix == "auto":
            answerer.share_prefix([prompts[row] for row in fitting])
        batches, new_tokens, prompt_tokens = _answer_rows(
            answerer, prompts, fitting, work, config.tokens_per_batch, progress
        )
        questions.write([_fields(row, work.answers, errors, questions.output_column) for row in range(len(prompts))])
        work.journal.delete()
    return GenerateSummary(
        questions=len(prompts),
        resumed=resumed,
        too_long=len(errors),
        new_tokens=new_tokens,
        prompt_tokens=prompt_tokens,
        host_columns=answerer.host_columns,
        shared_prefix=len(answerer.prefix) if answerer.prefix else 0,
        seconds=time.perf_counter() - start,
        batches=batches,
        halvings=answerer.halvings,
        peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


class WorkFile:
    """The answers of an unfinished run: a journal of batches whose first record identifies the run.

    Args:
        output: the run's output; the work file is named like it, with `.partial` appended.
        fingerprint: what decides the answers.
        overwrite: whether to discard the batches of another run.

    Attributes:
        answers: (text, number of tokens) by index of the question.
        budget: requested tokens per batch of the run that wrote the last batch, and what halving left of them.

    Raises:
        ValueError: when another process writes the file, or it belongs to another run.
    """

    def __init__(self, output: Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False):
        self.path = output.with_name(f"{output.name}.partial")
        self.answers: dict[int, tuple[str, int]] = {}
        self.budget: tuple[int, int] | None = None
        self.journal = Journal(self.path)
        try:
            self._resume(fingerprint, overwrite)
        except BaseException:
            self.journal.close()
            raise

    def _resume(self, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        with self.path.open("rb") as file:
            header = file.readline()
        # Checked before `read`, which would cut a file of another kind.
        if header.endswith(b"\n") and not overwrite:
            remedy = "Name another output, or pass --overwrite to discard its answers."
            check_same_run(_fingerprint(header), fingerprint, place=str(self.path), remedy=remedy)
        records, kept = list(self.journal.read()), 0
        if records and records[0].get("fingerprint") == fingerprint:
            kept = 1
            for record in records[1:]:
                try:
                    requested, left = record["tokens_per_batch"]
                    answers = {index: (text, tokens) for index, text, tokens in record["answers"]}
                except (KeyError, TypeError, ValueError):
                    break
                self.answers.update(answers)
                self.budget = requested, left
                kept += 1
        self.journal.keep(kept)
        if not kept:
            self.journal.append({"fingerprint": fingerprint})

    def append(self, indices: Sequence[int], answers: Sequence[Answer], budget: tuple[int, int]) -> None:
        """Add a batch: its questions, their answers and the budget that it was made under."""
        made = [(answer.output, answer.new_tokens) for answer in answers]
        self.answers.update(zip(indices, made, strict=True))
        rows = [[index, *answer] for index, answer in zip(indices, made, strict=True)]
        self.journal.append({"tokens_per_batch": budget, "answers": rows})

    def __enter__(self) -> "WorkFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()


def _fingerprint(header: bytes) -> dict[str, Any]:
    """Return the fingerprint in a work file's first line, empty when there is none."""
    try:
        found = json.loads(header)["fingerprint"]
    except (KeyError, TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def _answer_rows(
    answerer: Answerer,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    work: WorkFile,
    requested: int,
    progress: bool,
) -> tuple[int, int, int]:
    """Answer the rows that are not in the work file; return the numbers of batches, new tokens and prompt tokens."""
    costs = {row: len(prompts[row]) + answerer.extra for row in rows}
    by_length = [rows[place] for place in longest_first(list(costs.values()))]
    left = [row for row in by_length if row not in work.answers]
    total, todo = sum(costs.values()), sum(costs[row] for row in left)
    batches = new_tokens = answered = 0
    start, before = time.perf_counter(), len(rows) - len(left)
    # The unit is tokens: the longest prompts come first, so that questions would give a wrong time left.
    with progress_bar("generate", total, total - todo, progress) as advance:
        advance(0, f"{before:,}/{len(rows):,}")
        for part, answers in answerer.parts(prompts, left):
            work.append(part, answers, (requested, answerer.tokens_per_batch or requested))
            batches, answered = batches + 1, answered + len(part)
            new_tokens += sum(answer.new_tokens for answer in answers)
            seconds = max(time.perf_counter() - start, 1e-9)
            advance(
                sum(costs[row] for row in part),
                f"{before + answered:,}/{len(rows):,}, {answered / seconds:,.1f} questions/s, "
                f"{new_tokens / seconds:,.0f} tokens/s",
            )
    return batches, new_tokens, sum(len(prompts[row]) for row in left)


def _fields(row: int, answers: Mapping[int, tuple[str, int]], errors: Mapping[int, str], column: str) -> dict:
    if row in errors:
        return {column: None, f"{column}_tokens": 0, "error": errors[row]}
    text, tokens = answers[row]
    return {column: text, f"{column}_tokens": tokens}
