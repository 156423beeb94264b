"""Batched answers of a SemCoT model or any causal LM: no CoT, explicit CoT, or implicit tokens."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch

from ..prompts import ANSWER_PROMPT, encode_prompt, prompt_text
from .answerer import Answer, Answerer, is_semcot
from .answerer import synchronized_time as synchronized_time
from .batches import plan_batches

METHODS = ("no_cot", "cot", "semcot")
# Where a base model, prompted without a chat template, goes on to make up the next question.
NEXT_QUESTION = "\nQuestion:"
# What a tokenizer returns takes many times the memory of the ids.
_TOKENIZED_AT_ONCE = 1024


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
        batch_size: questions at once, fewer for good once memory was too small for them.
        max_new_tokens: most tokens of one answer.
        answer_prompt: text behind the generation prompt.
        num_implicit_tokens: k of "semcot"; the model's own when `None`.
        implicit_embeddings_for: for "semcot", gives the embeddings (len(indices), k, host hidden size) of the
            queries at `indices`, instead of the model's own.
        few_shot: rows with query, reasoning and answer to show before each question (plain causal LMs); the host
            reads them once for all questions.
        chat: whether to use the tokenizer's chat template; where it has one when `None`.
        progress: called with the number of questions that each batch has answered.

    Returns:
        One `Answer` per query, in the order of `queries`.

    Raises:
        ValueError: for a method that the model does not have, or options that do not fit it; when memory is too small
            for one question.
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
        shared_prefix=bool(few_shot),
    ):
        for index, answer in zip(indices, batch, strict=True):
            answers[index] = answer
        if progress is not None:
            progress(len(indices))
    return answers


def encode_prompts(tokenizer, queries: Iterable[str | Sequence[Mapping]], **options) -> list[list[int]]:
    """Token ids of each question's prompt, as a list; the arguments are those of `iterate_prompts`."""
    return list(iterate_prompts(tokenizer, queries, **options))


def iterate_prompts(
    tokenizer,
    queries: Iterable[str | Sequence[Mapping]],
    *,
    method: str,
    answer_prompt: str = ANSWER_PROMPT,
    few_shot: Sequence[Mapping] = (),
    chat: bool = True,
) -> Iterator[list[int]]:
    """Yield token ids of each question's prompt; see `answer_questions`. A question may be a list of chat messages.

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
    queries = iter(queries)
    while some := list(islice(queries, _TOKENIZED_AT_ONCE)):
        texts = []
        for query in some:
            asked = [{"role": "user", "content": query}] if isinstance(query, str) else query
            text = prompt_text(tokenizer, [*shown, *asked]).removesuffix(answer_prompt)
            texts.append(text if method == "cot" else text + answer_prompt)
        yield from encode_prompt(tokenizer, texts)


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
    shared_prefix: bool = False,
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Yield (indices, answers) batch by batch; the arguments are those of `answer_questions`.

    Args:
        prompts: token ids.
        batches: indices into `prompts`, as `plan_batches` gives them.
        stop: text that ends an answer, for models that do not end by themselves.
        shared_prefix: whether what all prompts begin with is run through the host once for all.
    """
    answerer = Answerer(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        num_implicit_tokens=num_implicit_tokens,
        implicit_embeddings_for=implicit_embeddings_for,
        stop=stop,
        shared_prefix=shared_prefix,
    )
    for batch in batches:
        yield batch, [answer for _, part in answerer.parts(batch) for answer in part]


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


def answer_prompt_of(model, tokenizer) -> str:
    """The answer prompt that a SemCoT model was trained with, or else `ANSWER_PROMPT`."""
    return tokenizer.decode(model.config.answer_prompt_ids) if is_semcot(model) else ANSWER_PROMPT


def check_answer_prompt(model, prompt: Sequence[int], answer_prompt: str) -> None:
    """Raise a ValueError when `answer_prompt` has given a prompt other last ids than the model was trained with."""
    wanted = model.config.answer_prompt_ids if is_semcot(model) else []
    if wanted and prompt[-len(wanted) :] != wanted:
        raise ValueError(
            f"answer_prompt={answer_prompt!r} ends a prompt on the ids {prompt[-len(wanted) :]}, but this model was "
            f"trained with {wanted} (config.answer_prompt_ids): pass the text that gives them."
        )
