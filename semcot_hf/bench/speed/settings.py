"""The settings of the speed benchmark, and its rows: one factor at a time around a centre."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from transformers import AutoTokenizer

from ...data import load_reasoning_dataset
from ...evaluation.report import METHOD_NAMES as EVALUATION_NAMES
from ...options import option
from .shapes import ANSWER_PROMPT_IDS, GPU_SIZES, SIZES, configs

# Parallel SemCoT whose host has the common beginning of all prompts in its cache.
SHARED = "semcot_shared_prefix"
# SemCoT with a compiled generator (on a GPU with captured graphs): sequential, and parallel.
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
# The method of the row of derived figures, one for each size.
PARTS = "parts"
# What may be swept, by its name in a setting.
FACTORS = {"batch": "batch size", "prompt": "prompt tokens", "k": "implicit tokens k", "answer": "answer tokens"}
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class SpeedSettings:
    """What to measure. The first value of each list is the centre, around which one list at a time is swept."""

    output_dir: str = field(metadata={"help": "Folder of the report; rows in it are not measured again."})
    sizes: list[str] = option(["tiny"], f"Shapes: {', '.join(SIZES)}; {', '.join(GPU_SIZES)} need a GPU.")
    methods: list[str] = option(list(SPEED_METHODS), "Methods; all by default.")
    batch_sizes: list[int] = option([1, 2, 4, 8, 16, 32, 64], "Questions per batch.")
    prompt_lengths: list[int] = option([128, 64, 256, 512, 1024, 2048], "Tokens of each prompt.")
    implicit_tokens: list[int] = option([5, 0, 1, 2, 8, 16, 32], "k of SemCoT, and of the Coconut-style loop.")
    answer_tokens: list[int] = option([8, 32], "Tokens of each answer.")
    cot_tokens: int = option(100, "Tokens of explicit CoT's reasoning.")
    cot_dataset: str | None = option(
        None, "Use the mean reasoning length of this dataset's test split instead; needs cot_tokenizer."
    )
    cot_tokenizer: str | None = option(None, "Id or folder of the tokenizer to count with.")
    caches: list[str] | None = option(
        None, "dynamic, static; by default static (with compiled decoding) and dynamic on a GPU, else dynamic."
    )
    seconds: float = option(2.0, "Time budget of each row; exceeded up to 5 times to complete three turns.")
    device: str | None = option(None, "cpu or cuda; by default cuda where available.")
    dtype: str | None = option(None, "By default bfloat16 on a GPU, else float32.")
    threads: int | None = option(None, "Threads of torch; its own choice by default.")
    overwrite: bool = option(False, "Discard the rows in output_dir.")


@dataclass(frozen=True)
class SpeedSetting:
    """What determines a row's figures.

    Args:
        size: name of a shape.
        method: one of SPEED_METHODS, or PARTS.
        batch, prompt, answer: questions per batch, tokens per prompt with its answer prompt, tokens per answer.
        k: implicit tokens, or latents of Coconut; 0 for the other methods.
        cot: reasoning tokens of explicit CoT; 0 for the other methods.
        cache: "dynamic" or "static".
        dtype, device, threads, seconds: how the row is measured, and for how long.
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

    @property
    def semcot(self) -> bool:
        """Whether the method is a SemCoT model."""
        return self.method.startswith("semcot")

    @property
    def sequential(self) -> bool:
        """Whether the generator makes its tokens one by one, with a cache."""
        return self.method in ("semcot_sequential", COMPILED)

    @property
    def needs_gpu(self) -> bool:
        """Whether the size is too large for the CPU on which it would run."""
        return self.size in GPU_SIZES and not self.device.startswith("cuda")

    @property
    def label(self) -> str:
        """The row in one line.

        >>> SpeedSetting("tiny", "cot", 4, 128, 0, 8, 100, "dynamic", "float32", "cpu", 1, 2.0).label
        'tiny, explicit CoT: batch 4, prompt 128, answer 8, reasoning 100'
        """
        values, name = asdict(self), METHOD_NAMES.get(self.method, self.method)
        shown = {"k": "k", "answer": "answer", "cot": "reasoning"}
        text = "".join(f", {word} {values[field]}" for field, word in shown.items() if values[field])
        cache = ", static cache" if self.cache == "static" else ""
        return f"{self.size}, {name}: batch {self.batch}, prompt {self.prompt}{text}{cache}"


def plan(settings: SpeedSettings) -> list[SpeedSetting]:
    """Return the rows: for each size its parts and the centre, then the other values of each factor at the centre.

    Sweeps use the first cache; the centre is measured with each of them.

    Raises:
        ValueError: naming the argument, for a value out of range or lengths beyond the host's context.
    """
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.startswith("cuda")
    caches = settings.caches or (["static", "dynamic"] if gpu else ["dynamic"])
    dtype = settings.dtype or ("bfloat16" if gpu else "float32")
    threads = torch.get_num_threads() if settings.threads is None else settings.threads
    _check_names("sizes", settings.sizes, SIZES)
    _check_names("methods", settings.methods, SPEED_METHODS)
    _check_names("caches", caches, ("dynamic", "static"))
    _check_names("dtype", [dtype], DTYPES)
    _check_numbers("batch_sizes", settings.batch_sizes, 1)
    _check_numbers("prompt_lengths", settings.prompt_lengths, len(ANSWER_PROMPT_IDS) + 1)
    _check_numbers("implicit_tokens", settings.implicit_tokens, 0)
    _check_numbers("answer_tokens", settings.answer_tokens, 1)
    _check_numbers("cot_tokens", [settings.cot_tokens], 1)
    _check_numbers("threads", [threads], 1)
    if not settings.seconds > 0:
        raise ValueError(f"seconds={settings.seconds}: must be more than 0.")
    cot = reasoning_tokens(settings)
    longest = max(settings.prompt_lengths) + max(settings.implicit_tokens) + max(settings.answer_tokens)
    longest += len(ANSWER_PROMPT_IDS) + cot
    rows = []
    for size in settings.sizes:
        context = configs(size)[0].max_position_embeddings
        if longest > context:
            raise ValueError(
                f"prompt_lengths={settings.prompt_lengths}: with implicit tokens, reasoning and answer up to "
                f"{longest} tokens, more than the {context} of {size}: lower prompt_lengths or cot_tokens."
            )
        centre = SpeedSetting(
            size=size,
            method=PARTS,
            batch=settings.batch_sizes[0],
            prompt=settings.prompt_lengths[0],
            k=settings.implicit_tokens[0],
            answer=settings.answer_tokens[0],
            cot=cot,
            cache=caches[0],
            dtype=dtype,
            device=device,
            threads=threads,
            seconds=float(settings.seconds),
        )
        if centre.k:
            rows.append(replace(centre, cot=0))
        around = [replace(centre, cache=cache) for cache in caches]
        around += [replace(centre, batch=value) for value in settings.batch_sizes[1:]]
        around += [replace(centre, prompt=value) for value in settings.prompt_lengths[1:]]
        around += [replace(centre, k=value) for value in settings.implicit_tokens[1:]]
        around += [replace(centre, answer=value) for value in settings.answer_tokens[1:]]
        rows += [_of_method(setting, method) for setting in around for method in settings.methods]
    return list(dict.fromkeys(rows))


def reasoning_tokens(settings: SpeedSettings) -> int:
    """Return the length of explicit CoT's reasoning: as given, or the mean over a dataset's test rows.

    Raises:
        ValueError: for a dataset without a tokenizer.
    """
    if settings.cot_dataset is None:
        return settings.cot_tokens
    if settings.cot_tokenizer is None:
        raise ValueError(
            f"cot_dataset={settings.cot_dataset!r} needs a tokenizer to count with: add --cot_tokenizer ID_OR_FOLDER."
        )
    rows = load_reasoning_dataset(settings.cot_dataset)["test"]
    tokenizer = AutoTokenizer.from_pretrained(settings.cot_tokenizer)
    lengths = [len(ids) for ids in tokenizer(rows["reasoning"][:], add_special_tokens=False)["input_ids"]]
    return round(sum(lengths) / len(lengths))


def _of_method(setting: SpeedSetting, method: str) -> SpeedSetting:
    """Return the setting for a method, with 0 for what the method does not have."""
    setting = replace(setting, method=method, cot=setting.cot if method == "cot" else 0)
    # Both start from a dynamic cache of their own.
    cache = "dynamic" if method in ("coconut", SHARED) else setting.cache
    return replace(setting, k=setting.k if setting.semcot or method == "coconut" else 0, cache=cache)


def _check_names(name: str, values: Sequence[str], known: Collection[str]) -> None:
    if not values or any(value not in known for value in values):
        raise ValueError(f"{name}={list(values)}: must be some of {', '.join(known)}.")


def _check_numbers(name: str, values: Sequence[int], least: int) -> None:
    if not values or any(value < least for value in values):
        raise ValueError(f"{name}={list(values)}: must be at least one number, each {least} or more.")
