"""Caches that `generate` is given as `past_key_values`: of the prompts' first columns, or returned by an earlier call.

A returned cache keeps what it says of its implicit tokens: `implicit_count`, `implicit_columns` and `implicit_slots`.
"""

from typing import Any

from torch import Tensor
from transformers import Cache

from .splicing_semcot import Slots


def check_prefix(cache: Cache | None, columns: int | Tensor) -> None:
    """Raise ValueError if a cache of the prompts' first columns reaches beyond the place of the implicit tokens."""
    cached = 0 if cache is None else int(cache.get_seq_length())
    if cached == 0:
        return
    first = columns if isinstance(columns, int) else int(columns.min())
    if cached > first:
        raise ValueError(
            f"past_key_values holds {cached} columns that this model's generate did not make, but implicit tokens "
            f"go before column {first}: pass a cache of at most the columns before it, one returned by generate, "
            "or num_implicit_tokens=0."
        )


def check_cropped(cache: Any) -> None:
    """Raise ValueError for a returned cache that was cropped to the prompts, with padding where slots are unused."""
    slots: Slots | None = getattr(cache, "implicit_slots", None)
    cached = 0 if cache is None else int(cache.get_seq_length())
    if slots is not None and slots.start < cached and bool(slots.unused.any()):
        raise ValueError(
            f"past_key_values is a cache of an earlier call that was cropped to {cached} columns, whose rows were "
            "padded to thoughts of different lengths: start with a new cache, or pass one question at a time."
        )


def holds_tokens(cache: Any, is_assistant: bool) -> bool:
    """Return whether a cache contains the implicit tokens of an earlier `generate`.

    A cache that was cropped to fewer columns is a prefix; an assistant's is cropped by a loop that counts text only.
    """
    cached = int(cache.get_seq_length()) if hasattr(cache, "implicit_columns") else 0
    if cached == 0:
        return False
    columns = cache.implicit_columns
    last = columns if isinstance(columns, int) else int(columns.max())
    return is_assistant or cached >= last + cache.implicit_count


def held_tokens(cache: Any, num_implicit_tokens: int | None, implicit_embeddings: Tensor | None) -> int:
    """Return the number of implicit tokens in a cache; raise ValueError if the call asks for others."""
    if num_implicit_tokens not in (None, cache.implicit_count) or implicit_embeddings is not None:
        raise ValueError(
            f"past_key_values holds {cache.implicit_count} implicit tokens from its first turn: leave "
            "implicit_embeddings and num_implicit_tokens out, or start with a new cache."
        )
    return cache.implicit_count


def held_rows(values: Any, batch: int) -> Any:
    """Return what a cache says of each row's tokens for `batch` rows, also after `batch_repeat_interleave`."""
    if isinstance(values, int) or len(values) == batch:
        return values
    if batch % len(values):
        raise ValueError(
            f"past_key_values holds the implicit tokens of {len(values)} rows, input_ids has {batch}: pass as many."
        )
    return values.repeat_interleave(batch // len(values))


def slots_behind(cache: Cache | None, slots: Slots) -> Slots:
    """Return the slots, of which the unused ones follow the columns in a cache of the prompts.

    Raises:
        ValueError: for a cache with sliding windows, which count columns, so that unused slots would narrow them.
    """
    cached = 0 if cache is None else int(cache.get_seq_length())
    if cached and cache is not None and any(cache.is_sliding):
        raise ValueError(
            f"past_key_values holds {cached} columns of a host with sliding windows, and the questions have different "
            "numbers of implicit tokens: leave past_key_values out, or pass one question at a time."
        )
    return slots._replace(start=cached)
