"""Memory of a row: what it needs at least, what it took, and what is at hand."""

import os

import torch

from ...evaluation.latency import process_peak_memory
from .settings import COMPILED, PARTS, SHARED, SpeedSetting
from .shapes import ANSWER_PROMPT_IDS, cache_numbers, configs, own_tokens, parameter_counts


def needed_bytes(setting: SpeedSetting) -> dict[str, int]:
    """Bytes of the weights and of the key-value caches that are full at the answer's end.

    >>> setting = SpeedSetting("toy", "semcot_sequential", 2, 10, 4, 6, 0, "dynamic", "float32", "cpu", 1, 1.0)
    >>> figures = needed_bytes(setting)
    >>> figures["weights_bytes"] == 4 * sum(parameter_counts("toy").values())
    True
    >>> figures["cache_bytes"]  # (10 + 4 + 6) tokens of 128 numbers, and (7 + 4) of 32 in the generator
    23296
    """
    host, generator = configs(setting.size)
    width = torch.finfo(getattr(torch, setting.dtype)).bits // 8
    tokens = setting.prompt + setting.k + setting.answer + setting.cot
    numbers = tokens * cache_numbers(host)
    if setting.method in ("semcot_sequential", COMPILED, PARTS):
        numbers += (setting.prompt - len(ANSWER_PROMPT_IDS) + setting.k) * cache_numbers(generator)
    numbers *= setting.batch
    if setting.method == SHARED:
        numbers += (setting.prompt - own_tokens(setting.prompt)) * cache_numbers(host)
    return {
        "weights_bytes": width * sum(parameter_counts(setting.size).values()),
        "cache_bytes": width * numbers,
    }


def memory_at_hand(device: torch.device) -> int:
    """Bytes of the GPU that are free, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """The largest memory so far: of the GPU's tensors, or of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak_memory()
