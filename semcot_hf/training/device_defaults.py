"""Defaults of the training configurations that depend on the device: bfloat16 and pinned memory."""

import torch
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)


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
