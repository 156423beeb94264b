"""Clocks: calls that take turns, ratios of what ran side by side, and the speed of plain copying."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ...inference.decoding import synchronized_time

# Turns that a row takes at least, and how many times its budget it may take for them.
FEWEST_TURNS, PATIENCE = 3, 5


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn, in an order that rotates, so that other load hits all of them alike.

    Args:
        calls: what is timed, by name.
        seconds: the budget; passed for the sake of three turns, but not five times over.
        device: whose queue is emptied before the clock is read.

    Returns:
        For each call its times; the i-th of all calls were taken side by side.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    begin, turns = synchronized_time(device), 0
    while True:
        shift = turns % len(names)
        for name in names[shift:] + names[:shift]:
            start = synchronized_time(device)
            calls[name]()
            times[name].append(synchronized_time(device) - start)
        turns, spent = turns + 1, synchronized_time(device) - begin
        if (turns >= FEWEST_TURNS and spent >= seconds) or spent >= PATIENCE * seconds:
            return times


def ratio(times: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """How many times as long `times` are as `others`, turn by turn: median, quartiles and extremes of the ratios.

    >>> ratio([2.0, 3.0, 8.0], [1.0, 2.0, 4.0])
    {'median': 2.0, 'low': 1.75, 'high': 2.0, 'lowest': 1.5, 'highest': 2.0}
    """
    ratios = [ours / theirs for ours, theirs in zip(times, others, strict=True)]
    low, median, high = np.percentile(ratios, [25, 50, 75])
    figures = {"median": median, "low": low, "high": high, "lowest": min(ratios), "highest": max(ratios)}
    return {name: round(float(figure), 4) for name, figure in figures.items()}


def copy_bandwidth(device: torch.device, *, size: int = 2**28, repeats: int = 7) -> float:
    """Bytes per second that a plain copy of `size` bytes reads and writes, the median of some."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(repeats):
        start = synchronized_time(device)
        target.copy_(source)
        times.append(synchronized_time(device) - start)
    return 2 * size / statistics.median(times)
