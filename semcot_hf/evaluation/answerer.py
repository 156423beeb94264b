"""Answers of a model batch by batch, greedily; a batch that memory is too small for is halved."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ..prompts import pad_left
from .batches import batch_within
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


def is_semcot(model) -> bool:
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
        behind = max(1, len(model.config.answer_prompt_ids)) if is_semcot(model) else 1
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
        if is_semcot(self.model):
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
    if not is_semcot(model):
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
