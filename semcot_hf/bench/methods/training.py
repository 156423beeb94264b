"""Training of the peers' methods: one Trainer, whose module computes its own loss from token ids."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from ..recipe import Recipe


@dataclass
class TrainingSetup:
    """All that a method gets; it is the same for every method of a run.

    Args:
        host: a fresh copy of the host causal LM.
        generator: folder or id of the generator that SemCoT and SoftCoT start from.
        tokenizer: of both.
        train_rows: training questions in the dataset schema.
        num_implicit_tokens, steps_per_token: k, and the steps that one token stands for.
        soft_words: the recipe of SemCoT (soft words).
        steps, batch_size, learning_rate, seed: of the training.
        device: where it runs.
        work_dir: folder for what the training has to write.
    """

    host: nn.Module
    generator: str
    tokenizer: object
    train_rows: list[dict]
    num_implicit_tokens: int
    steps_per_token: int
    soft_words: Recipe
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    work_dir: Path


@dataclass
class Trained:
    """What a method gives back.

    Args:
        model: answers through `generate`.
        answered_by: method of `answer_questions`: "no_cot", "cot" or "semcot".
        trainable_parameters: number of parameters that training changed.
        answer_prompt: text behind the generation prompt where it is not the usual one.
        losses: (step, loss) pairs.
        operations: floating point operations of the training's steps.
        seen_questions: how often a question was seen, where that is not steps * batch size.
    """

    model: nn.Module
    answered_by: str
    trainable_parameters: int
    answer_prompt: str | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    operations: float | None = None
    seen_questions: int | None = None


class _ModuleTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        progress = self.state.global_step / max(1, self.state.max_steps)
        return model(inputs["rows"], progress)


class _ResetOptimizer(TrainerCallback):
    """Forget the optimizer's moments whenever the module's curriculum enters its next stage."""

    def __init__(self, stage: Callable[[float], int]):
        self.stage, self.last, self.resets = stage, 0, 0

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        stage = self.stage(state.global_step / max(1, state.max_steps))
        if stage != self.last:
            optimizer.state.clear()
            self.last, self.resets = stage, self.resets + 1


def operation_counter():
    """torch's counter of floating point operations, which also counts attention on a CPU.

    >>> with operation_counter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.get_total_flops()
    48
    """
    # Attention on CPU, which torch has no formula for.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        attention: lambda *shapes, out_shape=None, **options: sdpa_flop_count(*shapes[:3]),
        backward: lambda *shapes, out_shape=None, **options: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


class OperationCounter(TrainerCallback):
    """Floating point operations of a training's steps, forward and backward, counted on every so-manieth step.

    Matrix products and attention count, a multiplication and an addition each as one, as torch counts them; what a
    trainer computes once before its first step does not.

    Args:
        samples: steps that are counted, spread evenly, so that a curriculum's stages weigh as they last.
    """

    def __init__(self, samples=20):
        self.samples, self.counted, self.mode = samples, [], None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % max(1, state.max_steps // self.samples) == 0:
            self.mode = operation_counter()
            self.mode.__enter__()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps = state.max_steps
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.counted.append(self.mode.get_total_flops())
            self.mode = None

    @property
    def total(self) -> float:
        """Operations of all steps: the counted ones' mean, times the number of steps."""
        return sum(self.counted) / len(self.counted) * self.steps


def fit(module, rows, setup, stage=None):
    """Train `module`, whose forward(rows, progress) is the loss of a list of `BenchRow`s.

    Args:
        module: parameters that require no gradient are left alone.
        rows: training rows.
        setup: steps, batch size, learning rate, seed, device.
        stage: curriculum stage at a progress in [0, 1); the optimizer is reset where it changes.

    Returns:
        `losses` and `operations` of `Trained`.
    """
    set_seed(setup.seed)
    module.to(setup.device)
    args = TrainingArguments(
        str(setup.work_dir),
        max_steps=setup.steps,
        per_device_train_batch_size=setup.batch_size,
        **optimization(setup),
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    counter = OperationCounter()
    callbacks = [counter] if stage is None else [counter, _ResetOptimizer(stage)]
    trainer = _ModuleTrainer(
        model=module,
        args=args,
        train_dataset=rows,
        data_collator=lambda batch: {"rows": batch},
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"losses": logged_losses(trainer), "operations": counter.total}


def optimization(setup):
    """The training arguments that every method shares, those of the trainers of SemCoT included."""
    return {
        "learning_rate": setup.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": max(1, setup.steps // 10),
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "logging_steps": max(1, setup.steps // 20),
        "report_to": "none",
        "use_cpu": setup.device == "cpu",
        # What the trainers of SemCoT would choose on a GPU is not transformers' own choice.
        "bf16": False,
        "seed": setup.seed,
    }


def logged_losses(trainer):
    """The (step, loss) pairs of a trainer's log."""
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def count_trainable(module) -> int:
    """Number of parameters that require a gradient.

    >>> count_trainable(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
