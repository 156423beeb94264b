"""The words phase and the steps after it as one run: the number of steps, the learning rate, and the phase's end."""

import math
import sys
from typing import Any, cast

import torch
from datasets import IterableDataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, get_scheduler

from .config import SemCoTDistillationConfig
from .data import AnyDataset

# What `Trainer.set_initial_training_values` returns.
Values = tuple[int, int, int, int, int, int | None, int]


def prepare_words_phase(dataset: AnyDataset, args: SemCoTDistillationConfig) -> AnyDataset:
    """Set the numbers of steps in `args` that follow from others, and return the rows of the run.

    These are `words_max_steps` for epochs of the words phase, and `max_steps` for a stream whose words alone are
    learned, since streams need it. Rows without words are dropped if no other phase follows.

    Args:
        dataset: tokenized training rows.

    Raises:
        ValueError: for epochs of a stream, whose length is not known.
    """
    if isinstance(dataset, IterableDataset):
        if args.words_max_steps == 0:
            raise ValueError(
                f"words_num_train_epochs={args.words_num_train_epochs}: train_dataset is a stream of unknown "
                "length. Set words_max_steps."
            )
        if args.teaches_only_words:
            args.max_steps = args.words_max_steps
        return dataset
    if args.teaches_only_words:
        dataset = dataset.select([index for index, ids in enumerate(dataset["thought_ids"]) if ids])
    if args.words_max_steps == 0:
        args.words_max_steps = math.ceil(args.words_num_train_epochs * steps_per_epoch(len(dataset), args))
    return dataset


def steps_per_epoch(rows: int, args: TrainingArguments) -> int:
    """Return the number of optimizer steps in an epoch, as `Trainer` counts them."""
    whole = math.floor if args.dataloader_drop_last else math.ceil
    batches = whole(rows / (args.train_batch_size * args.world_size))
    return max(1, math.ceil(batches / args.gradient_accumulation_steps))


def with_words_phase(words_max_steps: int, values: Values) -> Values:
    """Return the number of epochs, samples and steps of a run with `words_max_steps` steps before it.

    Args:
        values: as returned by `Trainer.set_initial_training_values`.

    >>> with_words_phase(10, (3, 4, 32, 96, 8, 4, 12))
    (6, 4, 32, 176, 8, 4, 22)
    """
    if words_max_steps == 0:
        return values
    epochs, steps_per_epoch, examples, samples, batch_size, steps_in_epoch, steps = values
    if epochs != sys.maxsize:
        epochs = math.ceil((steps + words_max_steps) / steps_per_epoch)
    samples += words_max_steps * batch_size
    return epochs, steps_per_epoch, examples, samples, batch_size, steps_in_epoch, steps + words_max_steps


def scheduler_of_phases(
    args: SemCoTDistillationConfig, optimizer: torch.optim.Optimizer, num_training_steps: int
) -> LambdaLR:
    """Return a scheduler that goes through `args.lr_scheduler_type` once in the words phase and once after it.

    Args:
        num_training_steps: of both phases together.

    Raises:
        ValueError: for a type that depends on evaluations, or a learning rate of 0.
    """
    words = args.words_max_steps
    if args.learning_rate <= 0:
        raise ValueError(f"learning_rate={args.learning_rate}: must be above 0.")
    lambdas = []
    for steps in (words, num_training_steps - words):
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=cast(dict[str, Any], args.lr_scheduler_kwargs),
        )
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"lr_scheduler_type={args.lr_scheduler_type!r} cannot start anew after the words phase "
                f"(words_max_steps={words}): choose 'linear', 'cosine' or 'constant_with_warmup'."
            )
        lambdas.append(scheduler.lr_lambdas[0])
    rate = args.words_learning_rate
    factor = 1.0 if rate is None else rate / args.learning_rate

    def share(step: int) -> float:
        return factor * lambdas[0](step) if step < words else lambdas[1](step - words)

    return LambdaLR(optimizer, share)


class PhaseEnd(TrainerCallback):
    """Evaluate and save at the end of the words phase, so that the best checkpoint may be the words' own."""

    def __init__(self, words_max_steps: int) -> None:
        self.words_max_steps = words_max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step == self.words_max_steps < state.max_steps:
            control.should_evaluate = control.should_evaluate or args.eval_strategy != "no"
            control.should_save = control.should_save or args.save_strategy not in ("no", "best")
        return control
