"""The floating point operations of a training, and what else it took."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput, has_length

from ..storage import write_json

RESULTS_NAME = "train_results.json"


def operation_counter() -> FlopCounterMode:
    """Return torch's counter of floating point operations, extended to attention on a CPU and to experts.

    Kernels that torch does not know (flash-attn, bitsandbytes) are not counted.

    >>> with operation_counter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.get_total_flops()
    48
    """
    # torch has no formula for these.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        attention: lambda *shapes, out_shape=None, **options: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, out_shape=None, **options: sdpa_backward_flop_count(*shapes[:4]),
        torch.ops.aten._grouped_mm: lambda a, b, *rest, out_shape=None, **options: _grouped(a, b),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _grouped(a: torch.Size, b: torch.Size) -> int:
    """Return the operations of a product in groups: each row of what is divided among the groups meets one of them."""
    rows, inner, columns = a[-2], a[-1], b[-1]
    # Only where both sides have all groups is each of them a product of its own.
    return 2 * rows * inner * columns * (a[0] if len(a) == len(b) == 3 else 1)


class OperationCounter(TrainerCallback):
    """Estimate the floating point operations of a training, forward and backward, from about `samples` of its steps.

    Matrix products and attention are counted as torch counts them: a multiplication and an addition are one operation
    each. What a trainer computes before its first step is not counted. The counted steps take up to twice their time,
    and round otherwise, since torch takes products apart to count them.

    Args:
        samples: number of counted steps, evenly spaced, so that each stage of a curriculum has its weight; with 0 none
            are counted.
        alone: steps that are counted by themselves, as is the first that is made: they cost more than those after them
            where a cache is filled.
    """

    def __init__(self, samples: int = 20, alone: Collection[int] = ()) -> None:
        self.samples, self.alone = samples, alone
        self.first, self.last = 0, 0
        self.counted: dict[int, int] = {}
        self.mode: FlopCounterMode | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin anew, also where a training of too large batches has failed."""
        self.stop()
        self.counted.clear()
        self.first = self.last = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to count, at the sampled steps."""
        if self.samples == 0:
            return
        every = -(-state.max_steps // self.samples)
        if state.global_step % every == every // 2 or self._is_alone(state.global_step):
            self.mode = operation_counter()
            self.mode.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Store the count of a sampled step."""
        self.last = state.global_step
        if self.mode is not None:
            self.counted[state.global_step - 1] = self.mode.get_total_flops()
            self.stop()

    def stop(self) -> None:
        """Stop counting, also in the middle of a step."""
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode = None

    def _is_alone(self, step: int) -> bool:
        return step == self.first or step in self.alone

    @property
    def sampled(self) -> bool:
        """Whether the counted steps tell of all that were made; not where a training stops before the first sample."""
        others = any(not self._is_alone(step) for step in self.counted)
        return bool(self.counted) and (others or len(self.counted) == self.last - self.first)

    @property
    def total(self) -> float:
        """Operations of the steps that were made: those alone, and the mean of the others times their number."""
        alone = [count for step, count in self.counted.items() if self._is_alone(step)]
        others = [count for step, count in self.counted.items() if not self._is_alone(step)]
        left = self.last - self.first - len(alone)
        return float(sum(alone)) + (sum(others) / len(others) * left if others else 0.0)


def train(
    trainer: Trainer, resume_from_checkpoint: str | bool | None = None, *, count_operations: bool = False
) -> TrainOutput:
    """Train, and write `train_results.json` into the output folder, where one of another training is removed first.

    Args:
        trainer: of either stage.
        resume_from_checkpoint: as `Trainer.train` takes it.
        count_operations: whether to count them, by `OperationCounter`. Of models that are partitioned or compiled, or
            split over devices by `DataParallel`, torch does not see all, so they are not counted.

    Returns:
        As `Trainer.train`. `metrics`, which the file holds, has `train_steps`, `train_samples` (rows, where their
        number is known) and of a resumed training `resumed_at_step`: `train_runtime` (seconds) and `total_flos` (the
        estimate, where operations were counted) are of the steps from there on.
    """
    args: Any = trainer.args
    path = Path(args.output_dir, RESULTS_NAME)
    if trainer.is_world_process_zero():
        path.unlink(missing_ok=True)
    whole = not (args.torch_compile or args.n_gpu > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    alone = (getattr(args, "words_max_steps", 0),)
    counter = OperationCounter(20 if count_operations and whole else 0, alone)
    trainer.add_callback(counter)
    try:
        output = trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    finally:
        counter.stop()
        trainer.remove_callback(counter)
    # transformers' own is of all parameters, frozen or not, and all tokens of a batch.
    output.metrics.pop("total_flos", None)
    if counter.sampled:
        output.metrics["total_flos"] = counter.total * args.world_size
    if has_length(trainer.train_dataset):
        output.metrics["train_samples"] = len(trainer.train_dataset)
    output.metrics["train_steps"] = output.global_step
    if counter.first:
        output.metrics["resumed_at_step"] = counter.first
    if trainer.is_world_process_zero():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, output.metrics)
    return output
