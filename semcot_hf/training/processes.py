"""The end of a training in several processes."""

from typing import Any

from transformers import Trainer


def end_training(trainer: Trainer) -> None:
    """Release what joins the processes of a training, and destroy their process group; it trains nothing afterwards.

    `accelerator.end_training` alone leaves torch's `DistributedDataParallel`, which keeps the group alive until the
    interpreter drops it. Then torch waits for the group's threads while it holds Python's lock (GIL), for which one of
    these may be waiting itself: the process hangs at its end.
    """
    model: Any = trainer.model
    trainer.model_wrapped = model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()
