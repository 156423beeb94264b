"""SemCoTTrainer: what the trainers of both stages add to transformers' `Trainer`, and their loading of a tokenizer."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .checkpoints import last_complete_checkpoint


class SemCoTTrainer(Trainer):
    """A `Trainer` that resumes from the last complete checkpoint, and whose checkpoints may hold more than its models.

    A subclass lists it before the library's trainer among its bases. `_in_checkpoint` is True while a checkpoint is
    being written.
    """

    _in_checkpoint = False

    @property
    def _output_dir(self) -> str:
        # TrainingArguments sets a default in place of None.
        return cast(str, self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer.train` does; `resume_from_checkpoint=True` takes the last complete checkpoint."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self._output_dir)
        self._reset_run()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _reset_run(self) -> None:
        """Drop what an earlier call of `train` has left in the trainer."""

    def _rows_in(self, steps: float) -> float:
        """Return the number of training rows that this process reads in `steps` optimizer steps."""
        return steps * self.args.train_batch_size * self.args.gradient_accumulation_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._in_checkpoint = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._in_checkpoint = False

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The trainer's state, written next, marks the checkpoint as complete: wait for the files of all processes.
        self.accelerator.wait_for_everyone()


def load_tokenizer(config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Load the host's tokenizer from where a host, or a SemCoT model, was loaded from.

    Raises:
        ValueError: when the config has no id or path.
    """
    name = config.name_or_path or getattr(config, "host_name_or_path", None)
    if not name:
        raise ValueError("processing_class is None and the model has no id or path: pass the host's tokenizer.")
    return AutoTokenizer.from_pretrained(name)


@contextlib.contextmanager
def no_loading_bars() -> Iterator[None]:
    """Suppress transformers' progress bars, one for each small file that is read or written in the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
