"""Measuring time and memory: calls in rotating turns, ratios of neighbouring times, needed and used bytes."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ...evaluation.latency import process_peak_memory
from ...inference.decoding import synchronized_time
from .settings import PARTS, SHARED, SpeedSetting
from .shapes import ANSWER_PROMPT_IDS, cache_numbers, configs, own_tokens, parameter_counts

# Minimum number of turns of a row, and the multiple of its budget that they may take.
FEWEST_TURNS, PATIENCE = 3, 5
Calls = Mapping[str, Callable[[], object]]


def take_turns(calls: Calls, *, seconds: float, device: torch.device) -> dict[str, list[float]]:
    """Measure the seconds of each call, turn by turn in rotating order, so that other load affects all calls equally.

    Args:
        calls: what to time, by name.
        seconds: the budget; exceeded to complete three turns, but not more than five times.
        device: its queue is synchronized before the clock is read.

    Returns:
        The times of each call, one per turn.
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
    """Return the median, quartiles and extremes of the ratios of `times` to `others`, turn by turn.

    >>> ratio([2.0, 3.0, 8.0], [1.0, 2.0, 4.0])
    {'median': 2.0, 'low': 1.75, 'high': 2.0, 'lowest': 1.5, 'highest': 2.0}
    """
    ratios = np.asarray(times) / np.asarray(others)
    values = np.percentile(ratios, [50, 25, 75, 0, 100])
    names = ("median", "low", "high", "lowest", "highest")
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def copy_bandwidth(device: torch.device, *, size: int = 2**28, repeats: int = 7) -> float:
    """Measure the bytes per second that a plain copy of `size` bytes reads and writes, the median of `repeats`."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(repeats):
        start = synchronized_time(device)
        target.copy_(source)
        times.append(synchronized_time(device) - start)
    return 2 * size / statistics.median(times)


def needed_bytes(setting: SpeedSetting) -> dict[str, int]:
    """Return the bytes of the weights, and of the key-value caches at the answer's end.

    >>> setting = SpeedSetting("toy", "semcot_sequential", 2, 10, 4, 6, 0, "dynamic", "float32", "cpu", 1, 1.0)
    >>> figures = needed_bytes(setting)
    >>> figures["weights_bytes"] == 4 * sum(parameter_counts("toy").values())
    True
    >>> figures["cache_bytes"]  # (10 + 4 + 6) tokens of 128 numbers, and (7 + 4) of 32 in the generator
    23296
    """
    host, generator = configs(setting.size)
    width = torch.finfo(getattr(torch, setting.dtype)).bits // 8
    numbers = (setting.prompt + setting.k + setting.answer + setting.cot) * cache_numbers(host)
    if setting.sequential or setting.method == PARTS:
        numbers += (setting.prompt - len(ANSWER_PROMPT_IDS) + setting.k) * cache_numbers(generator)
    numbers *= setting.batch
    if setting.method == SHARED:
        numbers += (setting.prompt - own_tokens(setting.prompt)) * cache_numbers(host)
    return {"weights_bytes": width * sum(parameter_counts(setting.size).values()), "cache_bytes": width * numbers}


def available_memory(device: torch.device) -> int:
    """Return the free bytes of the GPU, or the bytes of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of the GPU's tensors, or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak_memory()
