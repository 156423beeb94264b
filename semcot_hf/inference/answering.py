"""Answers of a model batch by batch, greedily; a batch that memory is too small for is halved."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import GenerationConfig

from .batches import batch_within, plan_batches
from .prompting import ANSWER_PROMPT, encode_prompt, pad_left, prompt_text
from .shared_prefix import find_shared_prefix

SAMPLING_SETTINGS = (
    "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip


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


def makes_implicit_tokens(model) -> bool:
    """Whether `model` makes implicit tokens: a SemCoT model, also one whose class came from the Hub, or a peer."""
    return hasattr(model, "implicit_embeddings")


class Answerer:
    """Answers prompts greedily, in batches padded on the left; the model is put into evaluation mode.

    Args:
        model: a `SemCoTForCausalLM` or any causal LM; tokenizer: its tokenizer.
        prompts: token ids of each question.
        max_new_tokens: most tokens of one answer.
        num_implicit_tokens: k of a SemCoT model; its own when `None`.
        implicit_embeddings_for: gives the embeddings (len(indices), k, host hidden size) of the prompts at `indices`,
            instead of the model's own.
        stop: text that ends an answer, for models that do not end by themselves.
        tokens_per_batch: budget for questions x (longest prompt + k + `max_new_tokens`); `None` sets none. A batch
            that memory is too small for halves it for good.
        shared_prefix: run the beginning that all prompts share through the host once for all.

    Attributes:
        extra: tokens that each prompt gets besides: implicit and new ones.
        halvings: how often memory was too small.
        prefix: the `SharedPrefix`, or `None`.
        host_columns: prompt columns, padding included, that the host has been run on.
    """

    def __init__(
        self,
        model,
        tokenizer,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        num_implicit_tokens: int | None = None,
        implicit_embeddings_for: Callable[[list[int]], torch.Tensor] | None = None,
        stop: str | None = None,
        tokens_per_batch: int | None = None,
        shared_prefix: bool = False,
    ):
        self.model, self.tokenizer, self.prompts = model, tokenizer, prompts
        # Setting all modules takes a small host as long as one of its layers, asking them a third of that.
        if any(module.training for module in model.modules()):
            model.eval()
        self.num_implicit_tokens, self.implicit_embeddings_for = num_implicit_tokens, implicit_embeddings_for
        self.stop, self.tokens_per_batch, self.halvings = stop, tokens_per_batch, 0
        self._config = _greedy(model, tokenizer, max_new_tokens, stop)
        self._device = model.get_input_embeddings().weight.device
        self._lengths = [len(prompt) for prompt in prompts]
        self.extra = max_new_tokens + implicit_count(model, num_implicit_tokens)
        # Implicit tokens stand before the answer prompt, which the prefix must not reach into.
        behind = max(1, len(model.config.answer_prompt_ids)) if makes_implicit_tokens(model) else 1
        self.prefix = find_shared_prefix(model, prompts, behind=behind) if shared_prefix else None
        self.host_columns = len(self.prefix) if self.prefix else 0

    def parts(self, indices: Sequence[int]) -> Iterator[tuple[list[int], list[Answer]]]:
        """Yield (some of the indices, their answers), consecutive ones, as many at once as fit.

        Raises:
            ValueError: when memory is too small for a single question.
        """
        lengths, done = [self._lengths[index] for index in indices], 0
        while done < len(indices):
            size = batch_within(lengths, self.extra, self.tokens_per_batch, done)
            part = list(indices[done : done + size])
            try:
                answers = self._answer(part)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise ValueError(
                        f"memory is too small for a single question of {lengths[done]} tokens with max_new_tokens="
                        f"{self._config.max_new_tokens}: lower max_new_tokens, load the model in a smaller dtype, or "
                        f"take a larger device ({error})."
                    ) from error
            else:
                yield part, answers
                done += size
                continue
            # Outside the handler: there the exception still holds the failed batch's tensors.
            self.halvings += 1
            self.tokens_per_batch = size * (max(lengths[done : done + size]) + self.extra) // 2
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _answer(self, indices):
        lengths = [self._lengths[index] for index in indices]
        ids, mask = pad_left([self.prompts[index] for index in indices], self._config.pad_token_id)
        kwargs = {}
        if makes_implicit_tokens(self.model):
            if self.implicit_embeddings_for is None:
                kwargs["num_implicit_tokens"] = self.num_implicit_tokens
            else:
                kwargs["implicit_embeddings"] = self.implicit_embeddings_for(list(indices)).to(self._device)
        if self.stop is not None:
            kwargs["tokenizer"] = self.tokenizer
        start = synchronized_time(self._device)
        if self.prefix is not None:
            kwargs["past_key_values"] = self.prefix.cache(lengths)
        with _no_sampling_defaults(self.model):
            sequences = self.model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=self._config,
                **kwargs,
            )
        seconds = (synchronized_time(self._device) - start) / len(indices)
        self.host_columns += ids.shape[0] * (ids.shape[1] - (len(self.prefix) if self.prefix else 0))
        new, ends = sequences[:, ids.shape[1] :].tolist(), self._config.eos_token_id or []
        answers = []
        for tokens, text in zip(new, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            stopped = self.stop is not None and self.stop in text
            used = _used_tokens(tokens, ends, self._config.pad_token_id, stopped)
            finished = stopped or used < self._config.max_new_tokens or tokens[used - 1] in ends
            answers.append(Answer(text.partition(self.stop)[0] if self.stop else text, used, seconds, finished))
        return answers


def implicit_count(model, num_implicit_tokens: int | None) -> int:
    """k of a SemCoT model, its own when `None`; 0 of any other."""
    if not makes_implicit_tokens(model):
        return 0
    return model.config.num_implicit_tokens if num_implicit_tokens is None else num_implicit_tokens


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory was too small, on whatever device.

    >>> is_out_of_memory(torch.OutOfMemoryError("full")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    True
    """
    signs = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _used_tokens(tokens, ends, pad, stopped):
    """Number of tokens up to the first end-of-sequence token, or without the padding behind a stop string.

    >>> _used_tokens([5, 6, 2, 0], [2], 0, False), _used_tokens([5, 6, 2, 2], [2], 2, False)
    (3, 3)
    >>> _used_tokens([5, 6, 0, 0], [2], 0, True), _used_tokens([5, 6, 2, 2], [2], 2, True)
    (2, 2)
    """
    for count, token in enumerate(tokens, start=1):
        if token in ends:
            return count - stopped
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


ANSWER_METHODS = ("no_cot", "cot", "semcot")
# Where a base model, prompted without a chat template, goes on to make up the next question.
NEXT_QUESTION = "\nQuestion:"
# What a tokenizer returns takes many times the memory of the ids.
_TOKENIZED_AT_ONCE = 1024


def methods_of(model) -> tuple[str, ...]:
    """The methods that `model` can answer by."""
    return ANSWER_METHODS if makes_implicit_tokens(model) else ANSWER_METHODS[:2]


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
    if makes_implicit_tokens(model) and few_shot:
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
    return tokenizer.decode(model.config.answer_prompt_ids) if makes_implicit_tokens(model) else ANSWER_PROMPT


def check_answer_prompt(model, prompt: Sequence[int], answer_prompt: str) -> None:
    """Raise a ValueError when `answer_prompt` has given a prompt other last ids than the model was trained with."""
    wanted = model.config.answer_prompt_ids if makes_implicit_tokens(model) else []
    if wanted and prompt[-len(wanted) :] != wanted:
        raise ValueError(
            f"answer_prompt={answer_prompt!r} ends a prompt on the ids {prompt[-len(wanted) :]}, but this model was "
            f"trained with {wanted} (config.answer_prompt_ids): pass the text that gives them."
        )
