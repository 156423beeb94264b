"""What both trainers' settings take from the device: bfloat16 where it has it, pinned memory where it helps."""

import torch


def set_device_defaults(args):
    """Fill in `bf16` where it is `None`, and switch `dataloader_pin_memory` off where no accelerator is used.

    Args:
        args: training arguments, before transformers' own `__post_init__`.
    """
    accelerator = torch.accelerator.is_available() and not args.use_cpu
    if args.bf16 is None:
        args.bf16 = accelerator and not args.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    args.dataloader_pin_memory = args.dataloader_pin_memory and accelerator
