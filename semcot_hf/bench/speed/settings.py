"""The rows of the benchmark: one factor at a time around a centre."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ...evaluation.report import METHOD_NAMES as EVALUATION_NAMES
from .shapes import ANSWER_PROMPT_IDS, GPU_SIZES, SIZES, configs

# SemCoT in parallel, whose host has the beginning that all prompts share in its cache.
SHARED = "semcot_shared_prefix"
# SemCoT whose generator is compiled, and on a GPU captured: sequential, and parallel.
COMPILED, COMPILED_PARALLEL = "semcot_compiled", "semcot_parallel_compiled"
METHOD_NAMES = {
    "no_cot": EVALUATION_NAMES["no_cot"],
    "cot": EVALUATION_NAMES["cot"],
    "semcot_parallel": "SemCoT parallel",
    "semcot_sequential": "SemCoT sequential",
    COMPILED: "SemCoT sequential, compiled",
    COMPILED_PARALLEL: "SemCoT parallel, compiled",
    SHARED: "SemCoT, shared prefix",
    "coconut": "Coconut-style",
}
SPEED_METHODS = tuple(METHOD_NAMES)
# The row of the derived figures, one for each size.
PARTS = "parts"
# What may be swept, by its name in a setting.
FACTORS = {"batch": "batch size", "prompt": "prompt tokens", "k": "implicit tokens k", "answer": "answer tokens"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SpeedSetting:
    """What decides a row's figures.

    Args:
        size: name of a shape.
        method: one of SPEED_METHODS, or PARTS.
        batch, prompt, answer: questions at once, their tokens with the answer prompt, tokens of each answer.
        k: implicit tokens, or thoughts of Coconut's; 0 for the other methods.
        cot: reasoning tokens of explicit CoT; 0 for the other methods.
        cache: "dynamic" or "static".
        dtype, device, threads, seconds: how it is run, and for how long.
    """

    size: str
    method: str
    batch: int
    prompt: int
    k: int
    answer: int
    cot: int
    cache: str
    dtype: str
    device: str
    threads: int
    seconds: float


def plan(
    *,
    sizes: Sequence[str],
    methods: Sequence[str],
    batch_sizes: Sequence[int],
    prompt_lengths: Sequence[int],
    implicit_tokens: Sequence[int],
    answer_tokens: Sequence[int],
    caches: Sequence[str],
    cot_tokens: int,
    dtype: str,
    device: str,
    threads: int,
    seconds: float,
) -> list[SpeedSetting]:
    """The rows: for each size its parts and the centre, then each factor's other values, the rest as in the centre.

    The first value of each list is the centre's. Sweeps use the first cache; the centre is run with each of them.

    Raises:
        ValueError: naming the argument, for a value out of range or lengths beyond the host's context.
    """
    _check_names("sizes", sizes, SIZES)
    _check_names("methods", methods, SPEED_METHODS)
    _check_names("caches", caches, ("dynamic", "static"))
    _check_names("dtype", [dtype], DTYPES)
    _check_numbers("batch_sizes", batch_sizes, 1)
    _check_numbers("prompt_lengths", prompt_lengths, len(ANSWER_PROMPT_IDS) + 1)
    _check_numbers("implicit_tokens", implicit_tokens, 0)
    _check_numbers("answer_tokens", answer_tokens, 1)
    _check_numbers("cot_tokens", [cot_tokens], 1)
    _check_numbers("threads", [threads], 1)
    if not seconds > 0:
        raise ValueError(f"seconds={seconds}: must be more than 0.")
    longest = max(prompt_lengths) + max(implicit_tokens) + max(answer_tokens) + len(ANSWER_PROMPT_IDS) + cot_tokens
    for size in sizes:
        context = configs(size)[0].max_position_embeddings
        if longest > context:
            raise ValueError(
                f"prompt_lengths={list(prompt_lengths)}: with implicit tokens, reasoning and answer up to {longest} "
                f"tokens, more than the {context} of {size}: lower prompt_lengths or cot_tokens."
            )
    rows = []
    for size in sizes:
        centre = SpeedSetting(
            size=size,
            method=PARTS,
            batch=batch_sizes[0],
            prompt=prompt_lengths[0],
            k=implicit_tokens[0],
            answer=answer_tokens[0],
            cot=cot_tokens,
            cache=caches[0],
            dtype=dtype,
            device=device,
            threads=threads,
            seconds=float(seconds),
        )
        if centre.k:
            rows.append(replace(centre, cot=0))
        around = [replace(centre, cache=cache) for cache in caches]
        lists = {"batch": batch_sizes, "prompt": prompt_lengths, "k": implicit_tokens, "answer": answer_tokens}
        for factor, values in lists.items():
            around += [replace(centre, **{factor: value}) for value in values[1:]]
        rows += [_of_method(setting, method) for setting in around for method in methods]
    return list(dict.fromkeys(rows))


def _of_method(setting, method):
    """The setting with what the method does not have set to 0."""
    k = setting.k if method.startswith("semcot") or method == "coconut" else 0
    # Both begin on a dynamic cache of their own.
    cache = "dynamic" if method in ("coconut", SHARED) else setting.cache
    return replace(setting, method=method, k=k, cot=setting.cot if method == "cot" else 0, cache=cache)


def label(setting: SpeedSetting) -> str:
    """The row in a line.

    >>> label(SpeedSetting("tiny", "cot", 4, 128, 0, 8, 100, "dynamic", "float32", "cpu", 1, 2.0))
    'tiny, explicit CoT: batch 4, prompt 128, answer 8, reasoning 100'
    """
    values = asdict(setting)
    name = METHOD_NAMES.get(setting.method, setting.method)
    text = f"{setting.size}, {name}: batch {setting.batch}, prompt {setting.prompt}"
    shown = {"k": "k", "answer": "answer", "cot": "reasoning"}
    text += "".join(f", {word} {values[field]}" for field, word in shown.items() if values[field])
    return text + (", static cache" if setting.cache == "static" else "")


def needs_gpu(setting: SpeedSetting) -> bool:
    """Whether the size is too large for a CPU."""
    return setting.size in GPU_SIZES and not setting.device.startswith("cuda")


def _check_names(name, values, known):
    wrong = [value for value in values if value not in known]
    if wrong or not values:
        raise ValueError(f"{name}={list(values)}: must be some of {', '.join(known)}.")


def _check_numbers(name, values, least):
    if not values or any(value < least for value in values):
        raise ValueError(f"{name}={list(values)}: must be at least one number, each {least} or more.")
