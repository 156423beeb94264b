"""What stage 2 writes and reads: models, training checkpoints, model cards and pushes to the Hub."""

import contextlib
import os
from typing import Any, cast

import torch
from torch import nn

from ..modeling import SemCoTForCausalLM
from ..modeling.weights_semcot import adapted_layers
from ..training.adapters import ADAPTERS_NAME, load_apart, save_adapters, save_apart, unexplained_keys
from ..training.model_card import model_card
from ..training.trainer import SemCoTTrainer, no_loading_bars
from .config import SemCoTDistillationConfig
from .model import STEPS_NAME, copy_code_and_tokenizers, split_step_decoder, without_step_decoder


class DistillationSaving(SemCoTTrainer):
    """The part of `SemCoTDistillationTrainer` that saves and loads."""

    args: SemCoTDistillationConfig
    model: SemCoTForCausalLM

    def create_model_card(  # type: ignore[override]  # TRL's signature, not transformers'
        self, model_name: str | None = None, dataset_name: Any = None, tags: Any = None
    ) -> None:
        """Write the model card to README.md in `args.output_dir`, as a push to the Hub does.

        Args:
            model_name: name for the card when there is no Hub id.
            dataset_name, tags: Hub ids of the training data and further tags, each a string or a list.
        """
        if not self.is_world_process_zero():
            return
        names = ("alpha", "step_weight", "kl_weight", "hidden_weight", "projection_warmup", "learning_rate", "seed")
        card = model_card(
            self.model.config,
            model_id=self.hub_model_id or model_name or self._output_dir,
            datasets=[dataset_name] if isinstance(dataset_name, str) else dataset_name or (),
            training={"steps": self.state.global_step, **{name: getattr(self.args, name) for name in names}},
            adapters=bool(adapted_layers(self.model.generator)),
            tags=[tags] if isinstance(tags, str) else tags or (),
        )
        card.save(os.path.join(self._output_dir, "README.md"))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not self.args.push_to_hub:
            super()._save_checkpoint(model, trial)
            return
        with self.model.for_the_hub(self.args.include_host, self.hub_model_id):
            self.create_model_card()
            super()._save_checkpoint(model, trial)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push as `Trainer.push_to_hub`; a host in a folder of this machine is included."""
        with self.model.for_the_hub(self.args.include_host, self.hub_model_id):
            return super().push_to_hub(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save a whole model; a step decoder that is not kept is saved only in checkpoints, in a file of its own.

        So is the step decoder's projection where the checkpoint has it in fewer bits than it is trained in.
        """
        output_dir = output_dir or self._output_dir
        steps: dict[str, torch.Tensor] = {}
        if not self.args.keep_step_decoder:
            steps, state_dict = split_step_decoder(self.model.state_dict() if state_dict is None else state_dict)
        with no_loading_bars(), without_step_decoder(self.model.config) if steps else contextlib.nullcontext():
            super()._save(output_dir, state_dict)
        if self.args.keep_step_decoder and self.model.step_decoder is not None:
            projection = cast(nn.Linear, self.model.step_projection)
            if projection.weight.dtype != self.model.step_decoder.dtype:
                steps = {f"step_projection.{name}": value for name, value in projection.state_dict().items()}
        if self._in_checkpoint and self.args.should_save:
            save_adapters(self.model, output_dir)
            save_apart(steps, output_dir, STEPS_NAME)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.is_world_process_zero() and (self.args.hub_always_push or not pushing):
            copy_code_and_tokenizers(checkpoint_folder, self._output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_apart(self.model, resume_from_checkpoint, ADAPTERS_NAME, STEPS_NAME)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_apart(self.model, cast(str, self.state.best_model_checkpoint), ADAPTERS_NAME, STEPS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        apart = ("host.",) if self.args.keep_step_decoder else ("host.", "step_")
        super()._issue_warnings_after_load(unexplained_keys(self.model, load_result, apart))
