"""Batched answers of a SemCoT model or any causal LM: no CoT, explicit CoT, or implicit tokens."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ..prompts import ANSWER_PROMPT, encode_prompt, prompt_text

METHODS = ("no_cot", "cot", "semcot")
SAMPLING_SETTINGS = (
    "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
# Where a base model, prompted without a chat template, goes on to make up the next question.
NEXT_QUESTION = "\nQuestion:"


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        output: the new text, special tokens left out.
        new_tokens: number of generated tokens, the end-of-sequence token included.
        seconds: wall time of the batch divided by its questions.
        finished: whether the model ended by itself, before `max_new_tokens`.
    """

    output: str
    new_tokens: int
    seconds: float
    finished: bool


def is_semcot(model) -> bool:
    """Whether `model` is a SemCoT model, also one whose class came from the Hub."""
    return model.config.model_type == "semcot"


def methods_of(model) -> tuple[str, ...]:
    """The methods that `model` can answer by."""
    return METHODS if is_semcot(model) else METHODS[:2]


def answer_questions(
    model,
    tokenizer,
    queries: Sequence[str],
    *,
    method: str,
    batch_size: int = 64,
    max_new_tokens: int = 256,
    answer_prompt: str = ANSWER_PROMPT,
    num_implicit_tokens: int | None = None,
    implicit_embeddings_for: Callable[[list[int]], torch.Tensor] | None = None,
    few_shot: Sequence[Mapping] = (),
    chat: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer `queries`, in batches padded on the left, greedily; the model is put into evaluation mode.

    Args:
        model: a `SemCoTForCausalLM` or any causal LM.
        tokenizer: its tokenizer.
        queries: the questions.
        method: "no_cot" (the prompt ends on the answer prompt), "cot" (the prompt without it, so that the host
            reasons in words) or, for a SemCoT model, "semcot" (implicit tokens before the answer prompt).
        batch_size: questions at once; halved for good whenever the GPU's memory is too small.
        max_new_tokens: most tokens of one answer.
        answer_prompt: text behind the generation prompt.
        num_implicit_tokens: k of "semcot"; the model's own when `None`.
        implicit_embeddings_for: for "semcot", gives the embeddings (len(indices), k, host hidden size) of the
            queries at `indices`, instead of the model's own.
        few_shot: rows with query, reasoning and answer to show before each question (plain causal LMs).
        chat: whether to use the tokenizer's chat template; where it has one when `None`.
        progress: called with the number of questions that each batch has answered.

    Returns:
        One `Answer` per query, in the order of `queries`.

    Raises:
        ValueError: for a method that the model does not have, or options that do not fit it.
    """
    check_method(model, method, few_shot=few_shot)
    if implicit_embeddings_for is not None and method != "semcot":
        raise ValueError(f"implicit_embeddings_for needs method='semcot', got method={method!r}.")
    chat = uses_chat(tokenizer, chat)
    prompts = encode_prompts(
        tokenizer, queries, method=method, answer_prompt=answer_prompt, few_shot=few_shot, chat=chat
    )
    answers: list[Answer | None] = [None] * len(prompts)
    for indices, batch in answer_batches(
        model,
        tokenizer,
        prompts,
        plan_batches([len(prompt) for prompt in prompts], batch_size),
        num_implicit_tokens=num_implicit_tokens if method == "semcot" else 0,
        implicit_embeddings_for=implicit_embeddings_for,
        max_new_tokens=max_new_tokens,
        stop=None if chat else NEXT_QUESTION,
    ):
        for index, answer in zip(indices, batch, strict=True):
            answers[index] = answer
        if progress is not None:
            progress(len(indices))
    return answers


def encode_prompts(
    tokenizer,
    queries: Iterable[str],
    *,
    method: str,
    answer_prompt: str = ANSWER_PROMPT,
    few_shot: Sequence[Mapping] = (),
    chat: bool = True,
) -> list[list[int]]:
    """Token ids of each question's prompt; see `answer_questions`.

    A tokenizer whose chat template writes the answer prompt itself (a SemCoT checkpoint's) gives the same prompts as
    one whose template does not.
    """
    if not chat and tokenizer.chat_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = None
    shown = []
    for row in few_shot:
        reasoning = row["reasoning"] if method == "cot" else ""
        shown.append({"role": "user", "content": row["query"]})
        shown.append({"role": "assistant", "content": f"{reasoning}{answer_prompt} {row['answer']}".strip()})
    prompts = []
    for query in queries:
        text = prompt_text(tokenizer, [*shown, {"role": "user", "content": query}]).removesuffix(answer_prompt)
        prompts.append(encode_prompt(tokenizer, text if method == "cot" else text + answer_prompt))
    return prompts


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide prompts into batches of like length, the longest first, so that memory runs out early or not at all.

    >>> plan_batches([3, 9, 4, 9, 1], 2)
    [[1, 3], [2, 0], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more.")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batches(
    model,
    tokenizer,
    prompts: Sequence[list[int]],
    batches: Iterable[list[int]],
    *,
    max_new_tokens: int,
    num_implicit_tokens: int | None = None,
    implicit_embeddings_for: Callable[[list[int]], torch.Tensor] | None = None,
    stop: str | None = None,
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Yield (indices, answers) batch by batch; the arguments are those of `answer_questions`.

    Args:
        prompts: token ids.
        batches: indices into `prompts`, as `plan_batches` gives them.
        stop: text that ends an answer, for models that do not end by themselves.
    """
    model.eval()
    config = _greedy(model, tokenizer, max_new_tokens, stop)
    limit = None
    for batch in batches:
        answers: list[Answer] = []
        while len(answers) < len(batch):
            part = batch[len(answers) :][:limit]
            try:
                answers += _answer_batch(
                    model, tokenizer, prompts, part, config, num_implicit_tokens, implicit_embeddings_for, stop
                )
                continue
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
            # Outside the handler: there the exception still holds the failed batch's tensors.
            limit = len(part) // 2
            torch.cuda.empty_cache()
        yield batch, answers


def pad_left(prompts: Sequence[list[int]], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, longest).

    >>> ids, mask = pad_left([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _answer_batch(model, tokenizer, prompts, indices, config, num_implicit_tokens, implicit_embeddings_for, stop):
    device = model.get_input_embeddings().weight.device
    ids, mask = pad_left([prompts[index] for index in indices], config.pad_token_id)
    kwargs = {}
    if is_semcot(model):
        if implicit_embeddings_for is None:
            kwargs["num_implicit_tokens"] = num_implicit_tokens
        else:
            kwargs["implicit_embeddings"] = implicit_embeddings_for(list(indices)).to(device)
    if stop is not None:
        kwargs["tokenizer"] = tokenizer
    start = synchronized_time(device)
    with _no_sampling_defaults(model):
        sequences = model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config, **kwargs
        )
    seconds = (synchronized_time(device) - start) / len(indices)
    new = sequences[:, ids.shape[1] :].tolist()
    answers = []
    for tokens, text in zip(new, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
        used = _used_tokens(tokens, config.eos_token_id or [], config.pad_token_id)
        finished = used < config.max_new_tokens or tokens[used - 1] in (config.eos_token_id or [])
        answers.append(Answer(text.partition(stop)[0] if stop else text, used, seconds, finished))
    return answers


def _used_tokens(tokens, ends, pad):
    """Number of tokens up to the first end-of-sequence token, or without the padding behind a stop string.

    >>> _used_tokens([5, 6, 2, 0], [2], 0), _used_tokens([5, 6, 0, 0], [2], 0), _used_tokens([5, 6, 2, 2], [2], 2)
    (3, 2, 3)
    """
    for count, token in enumerate(tokens, start=1):
        if token in ends:
            return count
    used = len(tokens)
    while used > 1 and tokens[used - 1] == pad:
        used -= 1
    return used


def synchronized_time(device: torch.device) -> float:
    """Seconds of a monotonic clock, once all work queued on a CUDA `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _no_sampling_defaults(model):
    """Take the model's sampling defaults away: `generate` adds them to any configuration, and warns that it did."""
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    for name in SAMPLING_SETTINGS:
        setattr(model.generation_config, name, None)
    try:
        yield
    finally:
        model.generation_config = own


def _greedy(model, tokenizer, max_new_tokens, stop):
    """Greedy decoding whatever sampling defaults the host brings; its other settings, such as penalties, hold."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        stop_strings=stop,
        return_dict_in_generate=False,
    )


def check_method(model, method: str, *, few_shot: Sequence[Mapping] = ()) -> None:
    """Raise a ValueError when `model` cannot answer by `method`, or not with examples before the question."""
    if method not in methods_of(model):
        raise ValueError(
            f"method={method!r}: a model of type {model.config.model_type!r} has {', '.join(methods_of(model))}."
        )
    if is_semcot(model) and few_shot:
        raise ValueError(
            f"few_shot has {len(few_shot)} examples, but a SemCoT model was trained on questions alone: leave "
            "few_shot out, or evaluate the host by itself."
        )


def uses_chat(tokenizer, chat: bool | None) -> bool:
    """Whether prompts are made by the tokenizer's chat template; see `answer_questions`."""
    if chat and not tokenizer.chat_template:
        raise ValueError("chat=True needs a tokenizer with a chat template: pass chat=False, or one that has it.")
    return bool(tokenizer.chat_template) if chat is None else chat
