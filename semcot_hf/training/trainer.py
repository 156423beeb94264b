"""SemCoTTrainer: what the trainers of both stages add to transformers' `Trainer`, and their loading of a tokenizer."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ..modeling.checksums_semcot import tokenizer_checksum
from ..modeling.configuration_semcot import SemCoTConfig
from ..modeling.folders_semcot import ReplacedFolder
from .checkpoints import check_checkpoint, last_complete_checkpoint, name_full_disk, write_checksums


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
        if isinstance(resume_from_checkpoint, str):
            check_checkpoint(resume_from_checkpoint)
        self._reset_run()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _reset_run(self) -> None:
        """Drop what an earlier call of `train` has left in the trainer."""

    def _rows_in(self, steps: float) -> float:
        """Return the number of training rows that this process reads in `steps` optimizer steps."""
        return steps * self.args.train_batch_size * self.args.gradient_accumulation_steps

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output_dir = output_dir or self._output_dir
        config = getattr(self.model, "config", None)
        if not isinstance(config, SemCoTConfig):
            with name_full_disk(output_dir):
                super()._save(output_dir, state_dict)
            return
        if isinstance(self.processing_class, PreTrainedTokenizerBase):
            config.tokenizer_checksum = tokenizer_checksum(self.processing_class)
        # Every process is called, and one of them saves.
        if self._in_checkpoint or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with ReplacedFolder(output_dir) as folder, name_full_disk(folder.path):
            super()._save(folder.path, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._in_checkpoint = True
        try:
            with name_full_disk(self._output_dir):
                super()._save_checkpoint(model, trial)
        finally:
            self._in_checkpoint = False
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and os.path.isdir(folder):
            write_checksums(folder)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            check_checkpoint(self.state.best_model_checkpoint)
        super()._load_best_model()

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
