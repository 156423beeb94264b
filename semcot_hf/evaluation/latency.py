"""Latency: seconds per query of several methods on one machine, measured side by side; peak memory."""

import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from ..inference.decoding import synchronized_time
from .statistics import summarize_latency


def measure_latency(
    calls: Mapping[str, Callable[[list[str]], object]],
    queries: Sequence[str],
    *,
    device: torch.device,
    batch_sizes: Sequence[int] = (1,),
    warmup: int = 2,
    progress: Callable[[str, int], object] | None = None,
) -> dict[str, list[dict]]:
    """Measure seconds per query of each method.

    The methods take turns batch by batch in a rotating order, so that other load on the machine affects all alike. On
    a GPU the clock is read only after the queued work is done.

    Args:
        calls: for each method, a function that answers a list of queries.
        queries: the questions, the same for each method.
        device: where the model runs.
        batch_sizes: sizes to measure at. Queries that do not fill a batch are left out; with fewer queries than a
            size, one batch of all queries is measured, and the row gives its actual size.
        warmup: uncounted batches that each method runs first.
        progress: called with the method and the number of queries after each counted batch.

    Returns:
        For each method a list, in the order of `batch_sizes`, of `batch_size`, `median`, `mean` and `p95` (seconds per
        query), `n` (batches) and `peak_memory_bytes` (GPU memory; `None` on CPU, where it cannot be measured by
        method).

    Raises:
        ValueError: when there is no query.
    """
    if not queries:
        raise ValueError("queries is empty: latency needs at least one question.")
    names, cuda = list(calls), device.type == "cuda"
    results: dict[str, list[dict]] = {name: [] for name in names}
    for size in batch_sizes:
        batches = [list(queries[start : start + size]) for start in range(0, len(queries), size)]
        batches = [batch for batch in batches if len(batch) == size] or batches[:1]
        for name in names:
            for turn in range(warmup):
                calls[name](batches[turn % len(batches)])
        peaks = dict.fromkeys(names, 0)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn, batch in enumerate(batches):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                if cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                start = synchronized_time(device)
                calls[name](batch)
                seconds[name].append((synchronized_time(device) - start) / len(batch))
                if cuda:
                    peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device))
                if progress is not None:
                    progress(name, len(batch))
        for name in names:
            results[name].append(
                {
                    "batch_size": len(batches[0]),
                    **summarize_latency(seconds[name]),
                    "peak_memory_bytes": peaks[name] if cuda else None,
                }
            )
    return results


def process_peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024
