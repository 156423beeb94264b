"""`generate_file`: answers to many questions, as fast as memory lets, resumable after a kill."""

import time
from array import array
from dataclasses import dataclass

import torch

from ..modeling.splicing_semcot import context_of
from ..progress import progress_bar
from ..storage import config_digest, text_digest, weights_digest
from .answering import (
    NEXT_QUESTION,
    Answerer,
    answer_prompt_of,
    check_answer_prompt,
    check_method,
    implicit_count,
    iterate_prompts,
    makes_implicit_tokens,
    uses_chat,
)
from .batches import longest_first
from .question_file import QuestionFile
from .work_file import WorkFile


@dataclass(frozen=True)
class GenerateSummary:
    """What a run has done.

    Attributes:
        questions: of the file; resumed: those that an earlier run had answered; too_long: those left unanswered.
        new_tokens, prompt_tokens: written and read for the others, by this run.
        host_columns: prompt columns, padding included, that the host was run on for them.
        shared_prefix: tokens of the beginning that the host has read once for all.
        seconds: wall time of this run without loading the model.
        batches: of this run; halvings: how often memory was too small for one.
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

    def __str__(self):
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
    model,
    tokenizer,
    questions: QuestionFile,
    *,
    method: str | None = None,
    num_implicit_tokens: int | None = None,
    max_new_tokens: int = 256,
    tokens_per_batch: int = 16384,
    chat: bool | None = None,
    shared_prefix: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    model_name: str | None = None,
) -> GenerateSummary:
    """Answer the questions of a file, greedily, and write their answers in its order.

    Batches are made of questions of like length, the longest first. Each is kept in a work file beside the output as
    it comes; called again after a kill, with the same settings, `generate_file` goes on where it was, in the batches
    that it would have made. The output is there only when it is whole.

    Args:
        model, tokenizer: a SemCoT model or any causal LM, and its tokenizer.
        questions: see `read_questions`.
        method: "no_cot", "cot" or "semcot"; "semcot" for a SemCoT model and "no_cot" for any other when `None`.
        num_implicit_tokens: k of "semcot"; the model's own when `None`.
        max_new_tokens: most tokens of one answer.
        tokens_per_batch: budget for questions x (longest prompt + k + `max_new_tokens`), halved for good whenever
            memory is too small. It decides no answer, so that a resumed run may have another.
        chat: whether to use the tokenizer's chat template; where it has one when `None`.
        shared_prefix: whether a beginning that all prompts share is run through the host once for all, where the model
            attends to the whole cache; the generator reads whole prompts all the same.
        overwrite: discards the work file of a run with other settings.
        progress: whether to show a bar, on a terminal.
        model_name: what the work file calls the model; its path when `None`.

    Returns:
        The counts. A question that does not fit the context has an `error` in its row and counts as too long.

    Raises:
        ValueError: for settings that do not fit the model, for a work file of other settings, or when memory is too
            small for one question.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("tokens_per_batch", tokens_per_batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more.")
    start, device = time.perf_counter(), model.get_input_embeddings().weight.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if method is None:
        method = "semcot" if makes_implicit_tokens(model) else "no_cot"
    check_method(model, method)
    if method != "semcot":
        if num_implicit_tokens is not None:
            raise ValueError(
                f"num_implicit_tokens={num_implicit_tokens} needs method='semcot', got method={method!r}: leave it "
                "out."
            )
        num_implicit_tokens = 0
    chat = uses_chat(tokenizer, chat)
    answer_prompt = answer_prompt_of(model, tokenizer)
    encoded = iterate_prompts(tokenizer, questions.queries, method=method, answer_prompt=answer_prompt, chat=chat)
    # Lists of a large file's ids would take nine times the memory.
    prompts = [array("i", prompt) for prompt in encoded]
    if method != "cot":
        check_answer_prompt(model, prompts[0].tolist(), answer_prompt)
    count = implicit_count(model, num_implicit_tokens)
    errors = _too_long(model, [len(prompt) for prompt in prompts], count, max_new_tokens)
    fingerprint = {
        "model": model_name or model.config.name_or_path or model.config.model_type,
        "config": config_digest(model),
        "weights": weights_digest(model),
        "input": questions.digest,
        "prompts": text_digest(prompt.tolist() for prompt in prompts),
        "method": method,
        "num_implicit_tokens": count,
        "max_new_tokens": max_new_tokens,
        "shared_prefix": shared_prefix,
    }
    with WorkFile(questions.output, fingerprint, overwrite=overwrite) as work:
        resumed, rows = len(work.answers), [row for row in range(len(prompts)) if row not in errors]
        same_budget = work.budget is not None and work.budget[0] == tokens_per_batch
        answerer = Answerer(
            model,
            tokenizer,
            [prompts[row] for row in rows],
            max_new_tokens=max_new_tokens,
            num_implicit_tokens=num_implicit_tokens,
            stop=None if chat else NEXT_QUESTION,
            tokens_per_batch=work.budget[1] if same_budget else tokens_per_batch,
            shared_prefix=shared_prefix,
        )
        batches, new_tokens, prompt_tokens = _answer_rows(answerer, rows, work, tokens_per_batch, progress)
        questions.write([_fields(row, work.answers, errors, questions.output_column) for row in range(len(prompts))])
        work.remove()
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


def _answer_rows(answerer, rows, work, requested, progress):
    """Answer the rows that are not in the work file; returns numbers of batches, of new and of prompt tokens."""
    costs = [len(prompt) + answerer.extra for prompt in answerer.prompts]
    left = [index for index in longest_first(costs) if rows[index] not in work.answers]
    total, todo = sum(costs), sum(costs[index] for index in left)
    batches = new_tokens = answered = 0
    start = time.perf_counter()
    with progress_bar("generate", total, total - todo, progress) as advance:
        advance(0, f"{len(rows) - len(left):,}/{len(rows):,}")
        for part, answers in answerer.parts(left):
            work.append(
                [rows[index] for index in part],
                [(answer.output, answer.new_tokens) for answer in answers],
                requested=requested,
                tokens_per_batch=answerer.tokens_per_batch,
            )
            made = sum(answer.new_tokens for answer in answers)
            batches, new_tokens = batches + 1, new_tokens + made
            answered += len(part)
            seconds = max(time.perf_counter() - start, 1e-9)
            advance(
                sum(costs[index] for index in part),
                f"{len(rows) - len(left) + answered:,}/{len(rows):,}, {answered / seconds:,.1f} questions/s, "
                f"{new_tokens / seconds:,.0f} tokens/s",
            )
    return batches, new_tokens, sum(len(answerer.prompts[index]) for index in left)


def _too_long(model, lengths, count, max_new_tokens):
    """What is said of each prompt that the model cannot take, by its row.

    The new tokens count in full, as in `generate(max_new_tokens=...)`: else what one answer has room for would depend
    on the prompts beside it.
    """
    host, generator, suffix = model.config.get_text_config(), None, 0
    if count and not model.config.separate_generator_tokenizer:
        generator, suffix = model.config.generator_config.get_text_config(), len(model.config.answer_prompt_ids)
    room, generator_room = (config and context_of(config) for config in (host, generator))
    errors = {}
    for row, length in enumerate(lengths):
        if room is not None and length + count + max_new_tokens > room:
            errors[row] = (
                f"a prompt of {length} tokens, {count} implicit tokens and {max_new_tokens} new tokens are more than "
                f"the context of {room}: shorten the question or lower max_new_tokens"
            )
        elif generator_room is not None and length - suffix + count > generator_room:
            errors[row] = (
                f"a question of {length - suffix} tokens and {count} implicit tokens are more than the generator's "
                f"context of {generator_room}: shorten the question"
            )
    return errors


def _fields(row, answers, errors, column):
    if row in errors:
        return {column: None, f"{column}_tokens": 0, "error": errors[row]}
    text, tokens = answers[row]
    return {column: text, f"{column}_tokens": tokens}
