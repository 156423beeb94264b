"""Batches of prompts of like length: at most so many questions, or so many tokens, at once."""

from collections.abc import Sequence


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
