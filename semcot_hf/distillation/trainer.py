"""SemCoTDistillationTrainer: stage 2, the training of the implicit-token generator against the frozen host."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput
from transformers.utils import logging
from trl.trainer.base_trainer import _BaseTrainer

from ..answers import check_answer, infer_answer_type
from ..data.rationale import rationale_agrees
from ..inference.answering import Answerer
from ..inference.settings import AnswerSettings
from ..modeling import SemCoTForCausalLM
from ..modeling.folders_semcot import check_run_folder
from ..modeling.modeling_semcot import SemCoTCausalLMOutput
from ..training.dataset_checks import column_names
from .batches import Batch, DistillationCollator, completion_width, curriculum_stage, with_words
from .config import SemCoTDistillationConfig
from .data import AnyDataset, in_one_shard, row_settings, schema_row, tokenize_dataset, warn_of_overlap
from .model import group_projection, prepare_model, prepare_tokenizer, prepare_words
from .objectives import LossParts, embed_tokens, frozen_encoder, semantic_alignment_loss, teacher_losses
from .phases import PhaseEnd, prepare_words_phase, scheduler_of_phases, with_words_phase
from .question_cache import QuestionCache, question_ids
from .saving import DistillationSaving
from .targets import COLUMN, add_reasoning_embeddings, reasoning_embedder

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from peft import PeftConfig


class SemCoTDistillationTrainer(DistillationSaving, _BaseTrainer):
    """Trainer of SemCoT's stage 2 (arXiv 2510.24940, section 3.2), with optional objectives of SIM-CoT and CODI.

    The host and the generator's embeddings are frozen; the projection, the <thought> embedding, the generator's
    layers and the step decoder are trained. In the first `args.projection_warmup` of all steps the generator's layers
    are frozen too. Before these, the first `args.words_max_steps` steps teach a generator of adaptive thoughts to
    write short reasoning in words, without the host.

    Args:
        model: `SemCoTForCausalLM`, its id or its path.
        args: the configuration.
        train_dataset, eval_dataset: rows in the paper's schema (query, reasoning, answer, optionally steps) or TRL's
            prompt/completion; of a conversation, the last user's message is the query. Streams are allowed.
            `eval_dataset` may be a dict of several.
        processing_class: the host's tokenizer; loaded from where the model or its host comes from when `None`.
        alignment_encoder: the encoder of stage 1, as a SentenceTransformer or path; required if `args.alpha` > 0, else
            refused.
        data_collator, callbacks, optimizers, kwargs: as in `Trainer`.
        peft_config: adapters for the generator and the step decoder, trained instead of their layers and merged into
            what is saved.

    Raises:
        ValueError: for an `args.output_dir` that host, generator or encoder come from, missing columns, empty
            datasets, rows beyond the context, or missing inputs of objectives.
    """

    loss_is_scaled_for_ga = False  # type: ignore[assignment]  # TRL declares None
    _tag_names = ["semcot", "implicit-chain-of-thought"]
    args: SemCoTDistillationConfig
    model: SemCoTForCausalLM
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: SemCoTForCausalLM | str | os.PathLike,
        args: SemCoTDistillationConfig | None = None,
        data_collator: Callable[[list[dict[str, Any]]], Batch] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        alignment_encoder: SentenceTransformer | str | os.PathLike | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        peft_config: "PeftConfig | None" = None,
        **kwargs: Any,
    ):
        args = SemCoTDistillationConfig("semcot-distillation") if args is None else copy.copy(args)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func: stage 2 has its own losses. Leave it out, and weight them by alpha, step_weight, "
                "kl_weight and hidden_weight."
            )
        set_seed(args.seed)
        if isinstance(model, str | os.PathLike):
            options = cast(dict, args.model_init_kwargs or {})
            model = SemCoTForCausalLM.from_pretrained(model, **options)
        encoder_folder = alignment_encoder if isinstance(alignment_encoder, str | os.PathLike) else None
        check_run_folder(str(args.output_dir), [*model.part_sources(), ("alignment encoder", encoder_folder)])
        processing_class, self._answer_prompt = prepare_tokenizer(processing_class, model.config, args.answer_prompt)
        prepare_model(model, args, peft_config)
        # A phase that trains the projection alone makes no sense where it is frozen.
        trained = any(parameter.requires_grad for parameter in model.projection.parameters())
        self._warmup = args.projection_warmup if trained or model.thought_embedding.requires_grad else 0.0
        if args.push_to_hub:
            # What could not be pushed is refused before training.
            with model.for_the_hub(args.include_host, args.hub_model_id):
                pass
        thoughts = None
        if args.teaches_words or args.words_weight > 0:
            thoughts, processing_class = prepare_words(model, processing_class, args, train_dataset)
        self._settings = row_settings(model, args, thoughts)
        self.alignment_encoder = frozen_encoder(alignment_encoder, args, cast(int, model.config.hidden_size))
        self._embedder = reasoning_embedder(model, processing_class, args, self.alignment_encoder)
        # Trainer sets these too, but the datasets are tokenized before.
        self.args, self.processing_class = args, processing_class
        self._questions: dict[str, list[dict]] = {}
        self._question_cache: QuestionCache | None = None
        rows, only_words = train_dataset, args.teaches_only_words
        train_dataset = self._tokenize(train_dataset, "train_dataset")
        if args.teaches_words:
            train_dataset = prepare_words_phase(train_dataset, args)
        # Where the words alone are learned from a stream, its max_steps hold them.
        self._steps_added = 0 if only_words and args.max_steps > 0 else args.words_max_steps
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: self._prepare_eval(dataset, rows, f"eval_dataset[{name!r}]", f"eval_{name}")
                for name, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            eval_dataset = self._prepare_eval(eval_dataset, rows, "eval_dataset", "eval")
        if data_collator is None:
            data_collator = DistillationCollator(
                processing_class.pad_token_id,
                with_steps=args.step_weight > 0,
                with_teacher=self._settings.teacher,
                with_words=self._settings.words,
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        self.add_callback(PhaseEnd(args.words_max_steps))
        self._parts = LossParts(self.accelerator)
        if self.is_deepspeed_enabled and args.projection_warmup > 0:
            raise ValueError(
                f"projection_warmup={args.projection_warmup}: with DeepSpeed the generator's gradients cannot be "
                "dropped in this phase. Set projection_warmup=0."
            )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.activation_checkpointing:
            raise ValueError(
                "fsdp_activation_checkpointing=true runs layers again on keys and values that they have added to: set "
                "it to false, and gradient_checkpointing=True here."
            )
        # With labels in a batch, Trainer computes evaluation losses through compute_loss.
        self.label_names = ["labels"]
        self.model.add_model_tags(self._tag_names)

    def _set_signature_columns_if_needed(self) -> None:
        own = ("prompt_ids", "completion_ids", "step_ids", "word_ids", "teacher_ids", "thought_ids", "thought_targets")
        self._signature_columns = [*own, "length", COLUMN]  # type: ignore[assignment]  # transformers declares None

    def _tokenize(self, dataset: AnyDataset | None, name: str) -> AnyDataset:
        """Return the dataset as token ids, with embeddings of the reasoning; one process computes, the others read."""
        if dataset is not None and name != "train_dataset":
            dataset = in_one_shard(dataset)
        with PartialState().main_process_first():
            tokenized = tokenize_dataset(
                dataset, name, self.processing_class, self._settings, self.args.dataset_num_proc
            )
            return tokenized if self._embedder is None else add_reasoning_embeddings(tokenized, name, self._embedder)

    def _prepare_eval(self, dataset: AnyDataset, train_rows: Any, name: str, prefix: str) -> AnyDataset:
        warn_of_overlap(train_rows, dataset, name)
        self._questions[prefix] = self._questions_of(dataset)
        return self._tokenize(dataset, name)

    def _questions_of(self, dataset: Dataset | IterableDataset) -> list[dict]:
        """Return the first `args.eval_generations` rows of an evaluation set, to be answered by generation."""
        limited = zip(range(self.args.eval_generations), dataset, strict=False)
        return [schema_row(example, "eval_dataset") for _, example in limited]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        group_projection(optimizer, self.model if model is None else model, self.args)
        return optimizer

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        return with_words_phase(self._steps_added, super().set_initial_training_values(args, dataloader))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None and self.args.words_max_steps > 0:
            optimizer = cast(torch.optim.Optimizer, self.optimizer if optimizer is None else optimizer)
            self.lr_scheduler = scheduler_of_phases(self.args, optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _reset_run(self) -> None:
        self._question_cache = None
        self._parts.clear("train", "eval")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the weighted sum of the objectives, and log each of them.

        Every trained parameter is used in `model.forward`, as DDP requires.
        """
        args = self.args
        teacher_ids, teacher_mask, words, words_mask = (
            inputs.pop(f"{part}_{name}", None)
            for part in ("teacher", "word")
            for name in ("input_ids", "attention_mask")
        )
        target = inputs.pop(COLUMN, None)
        thought = {name: inputs.pop(name, None) for name in ("thought_input_ids", "thought_targets")}
        with_thought = thought["thought_targets"] is not None
        if self.model.training and self._progress() < 0:
            outputs = self._teach_words(model, inputs, thought)
            words_loss = {"words_loss": (1.0, outputs.thought_loss.mean())}
            return self._total(words_loss, outputs, return_outputs, self._with_words(thought))
        answer_width = completion_width(inputs)
        question_cache = tokens = None
        stage = self._curriculum_stage()
        if stage < self._settings.num_implicit_tokens:
            words, words_mask = words[:, stage - 1], words_mask[:, stage - 1]
            inputs.update(with_words(inputs, words, words_mask, self._settings.answer_prompt_size))
        else:
            question_cache, tokens = self._from_question_cache(inputs)
        by_state = target is not None and args.alignment_view == "hidden_state"
        outputs = model(
            **inputs,
            implicit_embeddings=tokens,
            logits_to_keep=completion_width(inputs) + 1,
            use_cache=False,
            output_hidden_states=by_state or args.hidden_weight > 0,
            use_question_cache=args.use_question_cache,
            question_cache=question_cache,
            **(thought if args.words_weight > 0 else {}),
        )
        # DataParallel returns one loss for each device.
        parts = {"answer_loss": (1 - args.alpha, outputs.loss.mean())}
        if target is not None:
            embedded = embed_tokens(outputs, self.alignment_encoder, args.alignment_view)
            parts["alignment_loss"] = (args.alpha, semantic_alignment_loss(embedded, target))
        if outputs.step_loss is not None:
            parts["step_loss"] = (args.step_weight, outputs.step_loss.mean())
        if teacher_ids is not None:
            host = self.accelerator.unwrap_model(self.model).host
            labels = inputs["labels"]
            parts.update(teacher_losses(host, teacher_ids, teacher_mask, outputs, labels, answer_width, args))
        if with_thought and (args.words_weight > 0 or not self.model.training):
            words_loss = outputs.thought_loss
            if words_loss is None:
                words_loss = self._teach_words(model, inputs, thought).thought_loss
            parts["words_loss"] = (args.words_weight, words_loss.mean())
        return self._total(parts, outputs, return_outputs, self._with_words(thought))

    @staticmethod
    def _with_words(thought: Mapping[str, torch.Tensor | None]) -> torch.Tensor | float:
        """Return the share of a batch's rows that have words."""
        targets = thought["thought_targets"]
        return 0.0 if targets is None else (targets != -100).any(dim=1).float().mean()

    @staticmethod
    def _teach_words(model: nn.Module, inputs: Mapping[str, Any], thought: Mapping[str, Any]) -> Any:
        prompts = {name: inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")}
        return model(**prompts, **thought)

    def _total(
        self,
        parts: dict[str, tuple[float, torch.Tensor]],
        outputs: Any,
        return_outputs: bool,
        with_words: torch.Tensor | float,
    ) -> Any:
        """Return the weighted sum of losses, and keep each for the log; `with_words` is a share of rows."""
        args = self.args
        loss = cast(torch.Tensor, sum(weight * value for weight, value in parts.values()))
        for name, (_, value) in parts.items():
            share = with_words if name == "words_loss" else 1.0
            self._parts.add(name, value.detach(), None if self.model.training else args.eval_batch_size, share)
        if self.model.training and not torch.isfinite(loss):
            values = ", ".join(f"{name} {value.item():.4g}" for name, (_, value) in parts.items())
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step} ({values}): lower learning_rate "
                f"({args.learning_rate}) or max_grad_norm ({args.max_grad_norm}), or resume from an older checkpoint."
            )
        return (loss, outputs) if return_outputs else loss

    def _from_question_cache(self, inputs: Mapping[str, torch.Tensor]) -> tuple[DynamicCache | None, Any]:
        """Return a training batch's question cache in the host and its implicit tokens; `None` for what is not cached.

        The tokens come from the question cache of the generator, which exists while the generator is frozen.
        """
        args, train_dataset = self.args, self.train_dataset
        model = self.accelerator.unwrap_model(self.model)
        if (
            not (self.model.training and args.use_question_cache and args.question_cache_gb > 0)
            or not isinstance(train_dataset, Dataset)
            or (self.is_deepspeed_enabled or self.is_fsdp_enabled or model._is_stateful)
            or any(parameter.requires_grad for parameter in model.host.parameters())
            # Every process caches all questions, which pays off if each meets them twice.
            or self._rows_in(self.state.max_steps - args.words_max_steps) < 2 * len(train_dataset)
        ):
            return None, None
        with self.accelerator.autocast():
            if self._question_cache is None:
                self._question_cache = QuestionCache(
                    model,
                    train_dataset["prompt_ids"],
                    batch_size=args.eval_batch_size,
                    budget=args.question_cache_gb * 2**30,
                    # DDP waits for gradients of the generator, which are those of its whole pass.
                    with_generator=self._in_warmup() and args.world_size == 1,
                )
            if not self._in_warmup():
                self._question_cache.drop_generator()
            prompts = question_ids(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
            return self._question_cache.host_cache(prompts), self._question_cache.implicit_embeddings(prompts)

    def _curriculum_stage(self) -> int:
        """Return how many implicit tokens replace their words in this step; all of them in evaluation."""
        args, count = self.args, self._settings.num_implicit_tokens
        if args.curriculum == 0 or not self.model.training:
            return count
        return curriculum_stage(self._progress(), args.curriculum, count)

    def _progress(self) -> float:
        """Return the completed share of the steps after the words phase; below 0 in that phase."""
        words, steps = self.args.words_max_steps, self.state.max_steps
        return (self.state.global_step - words) / max(1, steps - words)

    def _in_warmup(self) -> bool:
        """Return whether the generator's layers are frozen in this step."""
        return 0 <= self._progress() < self._warmup

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._in_warmup():
            # AdamW skips parameters without a gradient: neither its step nor its decay changes the generator.
            for parameter in self.accelerator.unwrap_model(self.model).generator.parameters():
                parameter.grad = None
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._parts.means("train"))
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the losses, and `eval_accuracy` of the answers generated to `args.eval_generations` questions.

        For thoughts of adaptive length, `eval_thoughts_ended` is the share that the generator ended, and
        `eval_thought_length` the mean number of tokens; `eval_thoughts_right` is the share whose words end on the
        right answer.

        `eval_dataset` may be another dataset, in the same forms as at construction.
        """
        if eval_dataset is None or isinstance(eval_dataset, dict | str) or "prompt_ids" in column_names(eval_dataset):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        known = self._questions
        self._questions = {metric_key_prefix: self._questions_of(eval_dataset)}
        try:
            return super().evaluate(self._tokenize(eval_dataset, "eval_dataset"), ignore_keys, metric_key_prefix)
        finally:
            self._questions = known

    def predict(self, test_dataset: Dataset | IterableDataset, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as `Trainer.predict`, for a dataset in the same forms as at construction."""
        if "prompt_ids" not in column_names(test_dataset):
            test_dataset = self._tokenize(test_dataset, "test_dataset")
        return super().predict(test_dataset, *args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return loss, logits and the labels of the same positions, as `Trainer.prediction_step`.

        Logits and labels begin at the token before the answers; position i predicts label i + 1.
        """
        ignore_keys = ignore_keys or [part.name for part in fields(SemCoTCausalLMOutput) if part.name != "logits"]
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, logits, None if logits is None or labels is None else labels[:, -logits.shape[1] :]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        self._parts.clear("eval")
        output, prefix = super().evaluation_loop(*args, **kwargs), kwargs.get("metric_key_prefix", "eval")
        metrics = {f"{prefix}_{name}": mean for name, mean in self._parts.means("eval").items()}
        if self._questions.get(prefix):
            metrics |= {f"{prefix}_{name}": value for name, value in self._answered(self._questions[prefix]).items()}
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def _answered(self, questions: list[dict]) -> dict[str, float]:
        """Return the share of questions that generation answers correctly; the processes divide them.

        For thoughts of adaptive length, also the share that ended before the limit, the mean number of tokens and,
        for thoughts in words, the share whose words end on the right answer.
        """
        answer_type = infer_answer_type([row["answer"] for row in questions])
        mine = questions[self.args.process_index :: self.args.world_size]
        counts = torch.zeros(4, device=self.args.device)
        model = self.accelerator.unwrap_model(self.model)
        adaptive = model.config.thought_length == "adaptive"
        if mine:
            was_training = model.training
            settings = AnswerSettings(
                method="semcot",
                max_new_tokens=self.args.generation_max_new_tokens,
                answer_prompt=self._answer_prompt,
            )
            answerer = Answerer(model, self.processing_class, settings)
            answerer.keeps_thoughts = adaptive
            answers = answerer.answers([row["query"] for row in mine], batch_size=self.args.per_device_eval_batch_size)
            model.train(was_training)
            for answer, row in zip(answers, mine, strict=True):
                right = check_answer(answer.output, row["answer"], answer_type)
                thought_right = rationale_agrees(answer.thought or "", row["answer"], answer_type)
                found = [right, answer.thought_ended, answer.implicit_tokens or 0, bool(thought_right)]
                counts += torch.tensor(found).to(counts)
        means = cast(torch.Tensor, self.accelerator.reduce(counts, "sum")) / len(questions)
        names = ("accuracy", "thoughts_ended", "thought_length", "thoughts_right")
        return dict(zip(names[: None if adaptive else 1], means.tolist(), strict=False))
