"""Decoding: generation settings, the tokens and time of an answer, and errors of too little memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.question_cache_semcot import hidden_settings

SAMPLING_SETTINGS = (
    "do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
# What a thought says is there to be repeated in the answer.
NO_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def decoding_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float,
    stop: str | None,
    repeats: bool = False,
) -> GenerationConfig:
    """Return the config of greedy decoding, or of sampling with a `temperature` above 0, up to the text `stop`.

    Settings that it leaves open, such as penalties, come from the model's own config, whose stop texts end answers,
    too; with `repeats`, nothing is penalized for being repeated. `eos_token_id` is a list or `None`, `pad_token_id` a
    number.
    """
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return GenerationConfig(
        do_sample=temperature > 0,
        **({"temperature": temperature} if temperature else {}),
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=pad,
        stop_strings=[stop, *stop_texts(model.generation_config)] if stop else None,
        return_dict_in_generate=False,
        **(NO_PENALTIES if repeats else {}),
    )


def stop_texts(config: GenerationConfig) -> list[str]:
    """Return the texts that end an answer by a generation config.

    >>> stop_texts(GenerationConfig(stop_strings="Q:")), stop_texts(GenerationConfig())
    (['Q:'], [])
    """
    texts = config.stop_strings
    return [texts] if isinstance(texts, str) else list(texts or ())


@contextmanager
def greedy_defaults(model: PreTrainedModel, *further: str) -> Iterator[None]:
    """Hide the model's sampling defaults, which `generate` would add to a greedy config and warn about.

    Args:
        model: the model.
        further: other settings to hide.
    """
    with hidden_settings(model, *SAMPLING_SETTINGS, *further):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sample with a seed of its own, and leave the state of torch's generators as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def used_tokens(tokens: Sequence[int], ends: Sequence[int], pad: int, stopped: bool) -> int:
    """Return the number of tokens up to the first end-of-sequence token, or without the padding after a stop text.

    >>> used_tokens([5, 6, 2, 0], [2], 0, False), used_tokens([5, 6, 2, 2], [2], 2, False)
    (3, 3)
    >>> used_tokens([5, 6, 0, 0], [2], 0, True), used_tokens([5, 6, 2, 2], [2], 2, True)
    (2, 2)
    """
    for count, token in enumerate(tokens, start=1):
        if token in ends:
            return count - stopped
    used = len(tokens)
    while used > 1 and tokens[used - 1] == pad:
        used -= 1
    return used


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error reports too little memory, on any device.

    >>> is_out_of_memory(torch.OutOfMemoryError("full")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    True
    """
    signs = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def synchronized_time(device: torch.device) -> float:
    """Return a monotonic clock's seconds after all queued work of a CUDA device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
