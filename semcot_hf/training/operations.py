"""The floating point operations of a training."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, has_length


def operation_counter() -> FlopCounterMode:
    """Return torch's counter of floating point operations, extended to attention on a CPU.

    >>> with operation_counter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.get_total_flops()
    48
    """
    # torch has no formula for attention on a CPU.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        attention: lambda *shapes, out_shape=None, **options: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, out_shape=None, **options: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


class OperationCounter(TrainerCallback):
    """Estimate the floating point operations of a training, forward and backward, from about `samples` of its steps.

    Matrix products and attention are counted as torch counts them: a multiplication and an addition are one operation
    each. What a trainer computes before its first step is not counted.

    Args:
        samples: number of counted steps, evenly spaced, so that each stage of a curriculum has its weight.
    """

    def __init__(self, samples: int = 20) -> None:
        self.samples, self.steps = samples, 0
        self.counted: list[int] = []
        self.mode: FlopCounterMode | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count, at the sampled steps."""
        if state.global_step % max(1, state.max_steps // self.samples) == 0:
            self.mode = operation_counter()
            self.mode.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store the count of a sampled step."""
        self.steps = state.max_steps
        if self.mode is not None:
            self.counted.append(self.mode.get_total_flops())
            self.stop()

    def stop(self) -> None:
        """Stop counting, also in the middle of a step."""
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None

    @property
    def total(self) -> float:
        """Operations of all steps: the mean of the counted ones times the number of steps."""
        return sum(self.counted) / len(self.counted) * self.steps


def train(trainer: Trainer, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
    """Train, and count the operations, where torch can: its counter does not see compiled or partitioned models.

    Args:
        trainer: of either stage.
        resume_from_checkpoint: as `Trainer.train` takes it.

    Returns:
        As `Trainer.train`. Of `metrics`, `total_flos` is the count, or missing: transformers' own estimate is of all
        parameters, frozen or not, and all tokens of a batch. `train_samples` is the number of rows, where it is known,
        and `train_steps` that of all steps.
    """
    counter = OperationCounter()
    counts = not (trainer.args.torch_compile or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    if counts:
        trainer.add_callback(counter)
    try:
        output = trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    finally:
        counter.stop()
    output.metrics.pop("total_flos", None)
    if counter.counted:
        output.metrics["total_flos"] = counter.total * trainer.args.world_size
    if has_length(trainer.train_dataset):
        output.metrics["train_samples"] = len(trainer.train_dataset)
    output.metrics["train_steps"] = output.global_step
    return output
