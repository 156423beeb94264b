"""Batches of prompts of similar length, limited by questions or by tokens."""

from collections.abc import Sequence


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Return indices by decreasing length, so that memory runs out early or not at all; equal ones keep their order.

    >>> longest_first([3, 9, 4, 9, 1])
    [1, 3, 2, 0, 4]
    """
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide prompts into batches of similar length, the longest first.

    >>> plan_batches([3, 9, 4, 9, 1], 2)
    [[1, 3], [2, 0], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be 1 or more.")
    order = longest_first(lengths)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_within(lengths: Sequence[int], extra: int, tokens: int | None, start: int = 0) -> int:
    """Return how many prompts from `start` on, at least one, form a padded batch of at most `tokens` tokens.

    Args:
        lengths: tokens of each prompt.
        extra: further tokens of each prompt: implicit and new ones.
        tokens: budget for prompts x (longest + extra); `None` takes all prompts.
        start: index of the first prompt.

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
