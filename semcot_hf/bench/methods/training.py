"""The training that the methods share: their inputs and results, and one Trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ...training.adapters import HALF
from ...training.operations import OperationCounter

# The stage of a curriculum at a progress in [0, 1).
Stage = Callable[[float], int]


@dataclass
class TrainingSetup:
    """The input of a method's training, the same for every method of a run.

    Args:
        host: a fresh copy of the host causal LM.
        generator: folder or id of the generator that SemCoT and SoftCoT start from.
        tokenizer: of both.
        train_rows: training questions in the dataset schema.
        num_implicit_tokens, steps_per_token: k, and the reasoning steps that one token represents.
        coconut: latents per step and number of stages of Coconut's curriculum.
        words_column, words_limit: column of the words of SemCoT (soft words), see `SemCoTDistillationConfig`, and the
            largest number of words in a thought, its end included.
        joint_share: steps of SemCoT (soft words) that train the words through the host, as a share of `steps`.
        steps, batch_size, learning_rate, seed: of the training.
        device: "cpu" or "cuda".
        work_dir: folder for files that the training writes.
    """

    host: PreTrainedModel
    generator: str
    tokenizer: PreTrainedTokenizerBase
    train_rows: list[dict]
    num_implicit_tokens: int
    steps_per_token: int
    coconut: tuple[int, int]
    words_column: str | None
    words_limit: int
    joint_share: float
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    work_dir: Path


@dataclass
class Trained:
    """The result of a method's training.

    Args:
        model: answers with `generate`.
        answered_by: method of `answer_questions`: "no_cot", "cot" or "semcot".
        trainable_parameters: number of trained parameters.
        answer_prompt: text behind the generation prompt, where it is not the usual one.
        losses: (step, loss) pairs.
        operations: floating point operations of the training.
        seen_questions: number of questions seen, where it is not steps * batch size.
        trained: whether there was a training at all.
    """

    model: nn.Module
    answered_by: str
    trainable_parameters: int
    answer_prompt: str | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    operations: float = 0.0
    seen_questions: int = 0
    trained: bool = True


class _ModuleTrainer(Trainer):
    def compute_loss(self, model: nn.Module, inputs: dict, *args: object, **kwargs: object) -> Tensor:
        return model(inputs["rows"], self.state.global_step / max(1, self.state.max_steps))


class _ResetOptimizer(TrainerCallback):
    """Clear the optimizer's moments whenever the module's curriculum enters its next stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.last = stage, 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stage = self.stage(state.global_step / max(1, state.max_steps))
        if stage != self.last:
            kwargs["optimizer"].state.clear()
            self.last = stage


def fit(
    module: nn.Module, rows: Sequence, setup: TrainingSetup, stage: Stage | None = None, **arguments: Any
) -> dict[str, Any]:
    """Train a module whose forward(rows, progress) returns the loss of a list of rows.

    Args:
        module: parameters that require no gradient stay unchanged, and those that do become float32, since 16-bit
            weights lose small updates.
        rows: training rows, such as `BenchRow`s.
        setup: steps, batch size, learning rate, seed, device.
        stage: stage of the module's curriculum; the optimizer is reset where it changes.
        arguments: training arguments in which the method differs from `training_arguments`.

    Returns:
        `losses` and `operations` of `Trained`.
    """
    set_seed(setup.seed)
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    counter = OperationCounter()
    trainer = _ModuleTrainer(
        model=module.to(setup.device),
        args=TrainingArguments(
            str(setup.work_dir),
            max_steps=setup.steps,
            remove_unused_columns=False,
            **{**training_arguments(setup), **arguments},
        ),
        train_dataset=rows,
        data_collator=lambda batch: {"rows": batch},
        callbacks=[counter] if stage is None else [counter, _ResetOptimizer(stage)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"losses": logged_losses(trainer), "operations": counter.total}


def training_arguments(setup: TrainingSetup) -> dict[str, Any]:
    """Return the training arguments that every method shares, those of SemCoT's own trainers included."""
    return {
        "per_device_train_batch_size": setup.batch_size,
        "learning_rate": setup.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, setup.steps // 10),
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "logging_steps": max(1, setup.steps // 20),
        "report_to": "none",
        "use_cpu": setup.device == "cpu",
        # SemCoT's trainers would choose bfloat16 on a GPU, transformers' own would not.
        "bf16": False,
        "seed": setup.seed,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def logged_losses(trainer: Trainer) -> list[tuple[int, float]]:
    """Return the (step, loss) pairs of a trainer's log."""
    return [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def count_trainable(module: nn.Module) -> int:
    """Return the number of parameters that require a gradient.

    >>> count_trainable(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
