"""One row of the benchmark, measured in a process of its own, whose peak memory is the row's."""

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging

from ...evaluation.environment import environment
from ...evaluation.statistics import summarize_latency
from ...inference.decoding import is_out_of_memory, synchronized_time
from ...modeling.modeling_semcot import SemCoTForCausalLM
from .calls import DECODE_STEPS, Calls, method_calls, part_calls
from .measurement import copy_bandwidth, needed_bytes, peak_bytes, ratio, take_turns
from .settings import PARTS, SpeedSetting
from .shapes import build_model, parameter_counts, weights_read_per_token

# k at which the two modes of the generator are compared.
SEQUENTIAL_K = 8
# Maximum bytes of weights for which checkpoints are written to measure their size.
_LARGEST_CHECKPOINT = 2**30


def run_row(setting: SpeedSetting) -> dict:
    """Build the model, measure, and return the row's figures, with the machine under `environment`.

    A row that does not fit into memory returns the reason under `not_run`.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device)
    try:
        figures = _parts(setting, device) if setting.method == PARTS else _method(setting, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"not_run": f"out of memory: {str(error).splitlines()[0]}"}
    return {**figures, "environment": environment(device)}


def _model(setting: SpeedSetting, count: int, device: torch.device) -> SemCoTForCausalLM:
    dtype = getattr(torch, setting.dtype)
    return build_model(setting.size, num_implicit_tokens=count, dtype=dtype, device=device)


def _method(setting: SpeedSetting, device: torch.device) -> dict:
    if device.type == "cpu":
        # A first answer of the smallest model loads the code of all libraries, which is not the model's memory.
        toy = replace(setting, size="toy", batch=1)
        method_calls(_model(toy, setting.k, device), toy)["method"]()
    before = peak_bytes(device)
    calls = method_calls(_model(setting, setting.k, device), setting)
    start = synchronized_time(device)
    calls["method"]()
    first = synchronized_time(device) - start
    needed, peak = needed_bytes(setting), peak_bytes(device) - before
    _warm_up(calls, device, long=first > setting.seconds)
    times = take_turns(calls, seconds=setting.seconds, device=device)
    latency = summarize_latency(times["method"])
    return {
        "latency_s": latency["median"],
        "p95_s": latency["p95"],
        "turns": latency["n"],
        "answers_per_s": setting.batch / latency["median"],
        "tokens_per_s": setting.batch * setting.answer / latency["median"],
        **{f"{name}_s": statistics.median(times[name]) for name in calls if name != "method"},
        "overhead": ratio(times["method"], times["limit"]),
        "strict_overhead": ratio(times["method"], times["strict_limit"]),
        "times_no_cot": ratio(times["method"], times["no_cot"]) if "no_cot" in times else None,
        "memory": {"peak_bytes": peak, **needed, "ratio": round(peak / sum(needed.values()), 4)},
    }


def _parts(setting: SpeedSetting, device: torch.device) -> dict:
    model = _model(setting, max(setting.k, SEQUENTIAL_K), device)
    # On a CPU the rows of the compiled methods have the figure, which takes a minute of compiling.
    compiled = device.type == "cuda"
    calls = part_calls(model, setting, SEQUENTIAL_K, compiled)
    _warm_up(calls, device, long=False)
    times = take_turns(calls, seconds=setting.seconds, device=device)
    turns = [dict(zip(times, turn, strict=True)) for turn in zip(*times.values(), strict=True)]
    steps = [(turn["decode"] - turn["prefill_k"]) / DECODE_STEPS for turn in turns]
    medians = {name: statistics.median(values) for name, values in times.items()}

    def tokens_in_steps(generator: str) -> dict[str, float]:
        """Return the cost of making the tokens and of reading them, in decode steps of the host."""
        return ratio([turn[generator] + turn["prefill_k"] - turn["prefill"] for turn in turns], steps)

    more: dict[str, object] = {}
    if compiled:
        more["compiled_generator_s"] = medians["compiled_generator"]
        more["compiled_tokens_in_decode_steps"] = tokens_in_steps("compiled_generator")
    # In parallel, generator and host would take the longer of their passes over the question, then the host's rest.
    apart = [turn["generator"] + turn["prefill_k"] for turn in turns]
    beside = [max(turn["generator"], turn["question"]) + turn["prefill_in_two"] - turn["question"] for turn in turns]
    step, bandwidth = statistics.median(steps), copy_bandwidth(device)
    read = torch.finfo(getattr(torch, setting.dtype)).bits // 8 * weights_read_per_token(setting.size)
    return {
        "turns": len(turns),
        "generator_s": medians["generator"],
        **more,
        "prefill_s": medians["prefill"],
        "prefill_with_tokens_s": medians["prefill_k"],
        "prefill_in_two_s": medians["prefill_in_two"],
        "side_by_side": ratio(beside, apart),
        "decode_step_s": step,
        "tokens_in_decode_steps": tokens_in_steps("generator"),
        "sequential_over_parallel": ratio(times["sequential"], times["parallel"]),
        "sequential_k": SEQUENTIAL_K,
        "weights_bytes_per_token": read,
        "copy_bytes_per_s": bandwidth,
        "decode_bandwidth_share": read / step / bandwidth,
        "parameters": parameter_counts(setting.size),
        "checkpoint_bytes": _checkpoint_bytes(model, setting),
    }


def _warm_up(calls: Calls, device: torch.device, *, long: bool) -> None:
    """Make each call once; twice on a GPU, for compiling and capturing graphs; not at all if it is long on a CPU."""
    for _ in range(2 if device.type == "cuda" else 0 if long else 1):
        for call in calls.values():
            call()


def _checkpoint_bytes(model: SemCoTForCausalLM, setting: SpeedSetting) -> Mapping[str, int] | None:
    """Return the bytes on disk of the checkpoint without and with its host; `None` where they are too large."""
    if needed_bytes(setting)["weights_bytes"] > _LARGEST_CHECKPOINT:
        return None
    sizes = {}
    for name, include_host in (("attached", False), ("whole", True)):
        with tempfile.TemporaryDirectory() as folder:
            model.config.host_name_or_path = "the/host"
            model.save_pretrained(folder, include_host=include_host)
            sizes[name] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return sizes
