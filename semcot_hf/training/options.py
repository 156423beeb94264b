"""Options of configurations: fields with help texts, range checks, and defaults that depend on the device."""

from dataclasses import field
from typing import TypeVar, cast

import torch
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

T = TypeVar("T")


def option(default: T, help: str) -> T:
    """Return a dataclass field with a default and a help text, in the form that `HfArgumentParser` reads.

    Like `dataclasses.field`, it is typed as the default that it stands for. A list is copied for each instance.
    """
    if isinstance(default, list):
        return cast(T, field(default_factory=default.copy, metadata={"help": help}))
    return field(default=default, metadata={"help": help})


def check_range(args: object, interval: str, *names: str) -> None:
    """Raise a ValueError for the first field of `args` that is outside an interval such as "[0, 1)".

    >>> check_range(1.5, "[0, 1)", "real")
    Traceback (most recent call last):
    ...
    ValueError: real=1.5 must lie in [0, 1).
    """
    low, high = map(float, interval[1:-1].split(","))
    for name in names:
        value = getattr(args, name)
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name}={value} must lie in {interval}.")


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX).

    There linear layers run four to six times faster than in float32; on other CPUs they run slower.
    """
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def set_device_defaults(args: TrainingArguments) -> None:
    """Set `bf16` where it is `None`, and switch `dataloader_pin_memory` off where no accelerator is used.

    `bf16` autocasts the computation; trained weights and losses stay in float32.

    Args:
        args: training arguments, before their own `__post_init__`.
    """
    accelerator = torch.accelerator.is_available() and not args.use_cpu
    if args.bf16 is None:
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported() if accelerator else cpu_has_bfloat16()
        args.bf16 = fast and not args.fp16
        if args.bf16 and not accelerator:
            logger.warning_once("bf16=None: this CPU computes bfloat16 in hardware, so bf16=True is used.")
    if args.bf16 and not accelerator:
        # Without an accelerator, transformers refuses bf16 unless the CPU is requested.
        args.use_cpu = True
    args.dataloader_pin_memory = args.dataloader_pin_memory and accelerator
