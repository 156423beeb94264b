"""Batches of prompts of like length: at most so many questions, or so many tokens, at once."""

from collections.abc import Sequence

import torch


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, so that memory runs out early or not at all; equal ones keep their order.

    >>> longest_first([3, 9, 4, 9, 1])
    [1, 3, 2, 0, 4]
    """
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide prompts into batches of like length, the longest first.

    >>> plan_batches([3, 9, 4, 9, 1], 2)
    [[1, 3], [2, 0], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more.")
    order = longest_first(lengths)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_within(lengths: Sequence[int], extra: int, tokens: int | None, start: int = 0) -> int:
    """Number of prompts from `start` on whose padded batch stays within `tokens`, but at least one.

    Args:
        lengths: tokens of each prompt.
        extra: tokens that every prompt gets besides: implicit and new ones.
        tokens: budget for prompts x (longest + extra); `None` takes them all.

    >>> batch_within([9, 9, 4, 3, 3], extra=6, tokens=30), batch_within([9, 9, 4, 3, 3], extra=6, tokens=30, start=2)
    (2, 3)
    >>> batch_within([9, 9], extra=6, tokens=1), batch_within([9, 9], extra=6, tokens=None)
    (1, 2)
    """
    if tokens is None:
        return len(lengths) - start
    longest = 0
    for end in range(start, len(lengths)):
        longest = max(longest, lengths[end])
        if (end - start + 1) * (longest + extra) > tokens:
            return max(1, end - start)
    return len(lengths) - start


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, longest).

    >>> ids, mask = pad_left([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
