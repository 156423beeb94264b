"""Stage 2: train the generator and its projection so that the frozen host answers as after its reasoning."""

import contextlib
import os
from dataclasses import fields

import torch
from accelerate import PartialState
from datasets import IterableDataset
from transformers import AutoTokenizer, set_seed
from trl.trainer.base_trainer import _BaseTrainer

from ..alignment.encoder import no_loading_bars
from ..answers import check_answer, infer_answer_type
from ..inference.prompting import answer_prompt_ids, choose_answer_prompt, with_answer_prompt
from ..modeling import SemCoTForCausalLM
from ..modeling.loading_semcot import adapted_layers
from ..modeling.modeling_semcot import SemCoTCausalLMOutput
from ..training.adapters import load_adapters, save_adapters, unexplained_keys
from ..training.checkpoints import last_complete_checkpoint
from ..training.model_card import model_card
from .batches import curriculum_stage, with_words
from .config import SemCoTDistillationConfig
from .data import (
    DistillationCollator,
    column_names,
    in_one_shard,
    row_settings,
    schema_row,
    tokenize_dataset,
    warn_of_overlap,
)
from .model import (
    copy_code_and_tokenizers,
    group_projection,
    load_step_decoder,
    prepare_model,
    save_step_decoder,
    split_step_decoder,
    without_step_decoder,
)
from .objectives import (
    LossParts,
    distribution_loss,
    embed_tokens,
    explicit_reasoning,
    frozen_encoder,
    hidden_state_loss,
    semantic_alignment_loss,
)
from .question_cache import QuestionCache, question_ids
from .targets import COLUMN, EncoderEmbeddings, MeanStates, add_reasoning_embeddings


class SemCoTDistillationTrainer(_BaseTrainer):
    """Trainer of SemCoT's stage 2 (arXiv 2510.24940, section 3.2), with SIM-CoT's and CODI's objectives beside it.

    The host is frozen, and so are the generator's embedding rows; the projection, the <thought> embedding, the
    generator's layers and the step decoder are trained. For the first `args.projection_warmup` of all steps only the
    projection and <thought> (and the step decoder) are.

    Args:
        model: `SemCoTForCausalLM`, id or path.
        args: `SemCoTDistillationConfig`.
        train_dataset, eval_dataset: rows in the paper's schema (query, reasoning, answer, optionally steps) or TRL's
            prompt/completion, conversational too, of which the last user's message is the query; streams too.
            `eval_dataset` may be a dict of several.
        processing_class: the host's tokenizer.
        alignment_encoder: what stage 1 saved, as a SentenceTransformer or path; needed while `args.alpha` > 0.
        peft_config: adapters for the generator, trained instead of its layers and merged into what is saved.

    Raises:
        ValueError: for missing columns, empty datasets, rows beyond the context, or objectives without what they need.
    """

    loss_is_scaled_for_ga = False
    _tag_names = ["semcot", "implicit-chain-of-thought"]
    _name = "SemCoT distillation"

    def __init__(
        self,
        model,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        alignment_encoder=None,
        callbacks=None,
        optimizers=(None, None),
        peft_config=None,
        **kwargs,
    ):
        args = SemCoTDistillationConfig("semcot-distillation") if args is None else args
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func: the losses of stage 2 are computed without it. Leave it out, and weigh them by "
                "alpha, step_weight, kl_weight and hidden_weight."
            )
        set_seed(args.seed)
        if isinstance(model, str | os.PathLike):
            model = SemCoTForCausalLM.from_pretrained(model, **(args.model_init_kwargs or {}))
        if processing_class is None:
            name = model.config.name_or_path or model.config.host_name_or_path
            if not name:
                raise ValueError(
                    "processing_class is None, and the model has no name_or_path to take it from: pass the host's "
                    "tokenizer."
                )
            processing_class = AutoTokenizer.from_pretrained(name)
        if processing_class.eos_token_id is None:
            raise ValueError(
                "processing_class has no eos_token, which ends each answer: set the token that the host ends on, "
                "processing_class.eos_token = ..."
            )
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        known = model.config.answer_prompt_ids
        self._answer_prompt = choose_answer_prompt(processing_class, args.answer_prompt, known)
        model.config.answer_prompt_ids = answer_prompt_ids(processing_class, self._answer_prompt)
        processing_class = with_answer_prompt(processing_class, self._answer_prompt)
        if args.include_host is not None:
            model.config.includes_host = args.include_host
        prepare_model(model, args, peft_config)
        self._settings = row_settings(model, args)
        self.alignment_encoder = frozen_encoder(alignment_encoder, args, model.config.hidden_size)
        self._embedder = None
        if args.alpha > 0:
            self._embedder = (
                MeanStates(model.host.to(args.device), processing_class)
                if self.alignment_encoder is None
                else EncoderEmbeddings(self.alignment_encoder.to(args.device))
            )
        # What _tokenize and _questions_of need before Trainer sets the same.
        self.args, self.processing_class = args, processing_class
        self._questions = {}
        self._in_checkpoint = False
        self._question_cache = None
        raw_train_dataset, train_dataset = train_dataset, self._tokenize(train_dataset, "train_dataset")
        if isinstance(eval_dataset, dict):
            for name, dataset in eval_dataset.items():
                warn_of_overlap(raw_train_dataset, dataset, f"eval_dataset[{name!r}]")
                self._questions[f"eval_{name}"] = self._questions_of(dataset)
            eval_dataset = {
                name: self._tokenize(dataset, f"eval_dataset[{name!r}]") for name, dataset in eval_dataset.items()
            }
        elif eval_dataset is not None:
            warn_of_overlap(raw_train_dataset, eval_dataset, "eval_dataset")
            self._questions["eval"] = self._questions_of(eval_dataset)
            eval_dataset = self._tokenize(eval_dataset, "eval_dataset")
        if data_collator is None:
            data_collator = DistillationCollator(
                processing_class.pad_token_id,
                with_steps=args.step_weight > 0,
                with_teacher=args.kl_weight > 0 or args.hidden_weight > 0,
                with_words=args.curriculum > 0,
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
        self._parts = LossParts(self.accelerator)
        if self.is_deepspeed_enabled and args.projection_warmup > 0:
            raise ValueError(
                f"projection_warmup={args.projection_warmup}: DeepSpeed keeps gradients where the phase cannot hold "
                "them back. Set projection_warmup=0."
            )
        # With labels in a batch, Trainer computes evaluation losses through compute_loss.
        self.label_names = ["labels"]
        self.model.add_model_tags(self._tag_names)

    def _set_signature_columns_if_needed(self):
        own = ("prompt_ids", "completion_ids", "step_ids", "word_ids", "teacher_ids")
        self._signature_columns = [*own, "length", COLUMN]

    def _tokenize(self, dataset, name):
        """The dataset as token ids, with the reasoning's embeddings; one process does the work, the others read it."""
        if name != "train_dataset":
            dataset = in_one_shard(dataset)
        with PartialState().main_process_first():
            dataset = tokenize_dataset(
                dataset, name, self.processing_class, self._settings, self.args.dataset_num_proc
            )
            return dataset if self._embedder is None else add_reasoning_embeddings(dataset, name, self._embedder)

    def _questions_of(self, dataset):
        """The first `args.eval_generations` rows of an evaluation set, to be answered by generation."""
        limited = zip(range(self.args.eval_generations), dataset, strict=False)
        return [schema_row(example, "eval_dataset") for _, example in limited]

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            super().create_optimizer(model)
            group_projection(self.optimizer, self.model if model is None else model, self.args)
        return self.optimizer

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As in `Trainer`; `True` goes on from the last checkpoint that was written completely."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        self._question_cache = None
        self._parts.clear("train", "eval")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the objectives; each part is logged. All trained parameters are used in `model.forward`."""
        args = self.args
        teacher_ids = inputs.pop("teacher_input_ids", None)
        teacher_mask = inputs.pop("teacher_attention_mask", None)
        target = inputs.pop(COLUMN, None)
        width = answer = int((inputs["completion_mask"].sum(dim=0) > 0).sum())
        by_state = target is not None and args.alignment_view == "hidden_state"
        question_cache = tokens = None
        words, words_mask = inputs.pop("word_input_ids", None), inputs.pop("word_attention_mask", None)
        stage = self._curriculum_stage()
        if stage < self._settings.num_implicit_tokens:
            words, words_mask = words[:, stage - 1], words_mask[:, stage - 1]
            inputs.update(with_words(inputs, words, words_mask, self._settings.answer_prompt_size))
            width = int((inputs["completion_mask"].sum(dim=0) > 0).sum())
        else:
            question_cache, tokens = self._from_question_cache(inputs)
        outputs = model(
            **inputs,
            implicit_embeddings=tokens,
            logits_to_keep=width + 1,
            use_cache=False,
            output_hidden_states=by_state or args.hidden_weight > 0,
            use_question_cache=args.use_question_cache,
            question_cache=question_cache,
        )
        # DataParallel gives one loss for each of its devices.
        parts = {"answer_loss": (1 - args.alpha, outputs.loss.mean())}
        if target is not None:
            parts["alignment_loss"] = (args.alpha, semantic_alignment_loss(self._embed(outputs), target))
        if outputs.step_loss is not None:
            parts["step_loss"] = (args.step_weight, outputs.step_loss.mean())
        if teacher_ids is not None:
            host = self.accelerator.unwrap_model(self.model).host
            teacher = explicit_reasoning(host, teacher_ids, teacher_mask, answer, args.hidden_weight > 0)
            before = -answer - 1
            if args.kl_weight > 0:
                labels = inputs["labels"][:, before:]
                logits = outputs.logits[:, before:]
                parts["kl_loss"] = (args.kl_weight, distribution_loss(logits, teacher.logits, labels))
            if args.hidden_weight > 0:
                student = torch.stack([layer[:, before] for layer in outputs.hidden_states[1:]])
                states = torch.stack([layer[:, before] for layer in teacher.hidden_states[1:]])
                parts["hidden_loss"] = (args.hidden_weight, hidden_state_loss(student, states))
        loss = sum(weight * value for weight, value in parts.values())
        for name, (_, value) in parts.items():
            self._parts.add(name, value.detach(), None if self.model.training else self.args.eval_batch_size)
        if self.model.training and not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step} "
                f"({', '.join(f'{name} {value.item():.4g}' for name, (_, value) in parts.items())}): lower "
                f"learning_rate ({args.learning_rate}) or max_grad_norm ({args.max_grad_norm}), or go on from an "
                "earlier checkpoint."
            )
        return (loss, outputs) if return_outputs else loss

    def _from_question_cache(self, inputs):
        """Return a training batch's question cache in the host and its implicit tokens; `None` for what is not cached.

        The tokens come from the question cache of the generator, which exists while the generator is frozen.
        """
        args = self.args
        samples = self.state.max_steps * args.train_batch_size * args.gradient_accumulation_steps
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        model = self.accelerator.unwrap_model(self.model)
        if not (
            self.model.training
            and args.use_question_cache
            and args.question_cache_gb > 0
            and not model._is_stateful
            and not (sharded or isinstance(self.train_dataset, IterableDataset))
            and not any(parameter.requires_grad for parameter in model.host.parameters())
            # Every process reads all questions, so each must meet them twice for that to pay.
            and samples >= 2 * len(self.train_dataset)
        ):
            return None, None
        with self.accelerator.autocast():
            if self._question_cache is None:
                self._question_cache = QuestionCache(
                    model,
                    self.train_dataset["prompt_ids"],
                    batch_size=args.eval_batch_size,
                    budget=args.question_cache_gb * 2**30,
                    # DDP waits for gradients of the generator, which are those of its whole pass.
                    with_generator=self._in_warmup() and args.world_size == 1,
                )
            if not self._in_warmup():
                self._question_cache.drop_generator()
            prompts = question_ids(inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"])
            return self._question_cache.host_cache(prompts), self._question_cache.implicit_embeddings(prompts)

    def _curriculum_stage(self):
        """Implicit tokens whose words are left out in this step; all of them in evaluation."""
        args, count = self.args, self._settings.num_implicit_tokens
        if args.curriculum == 0 or not self.model.training:
            return count
        return curriculum_stage(self.state.global_step / self.state.max_steps, args.curriculum, count)

    def _in_warmup(self):
        """Whether this step trains the projection and <thought> (and the step decoder) only."""
        return self.state.global_step < self.args.projection_warmup * self.state.max_steps

    def _embed(self, outputs):
        return embed_tokens(outputs, self.alignment_encoder, self.args.alignment_view)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self._in_warmup():
            # AdamW passes over parameters without a gradient, so neither its step nor its decay moves the generator.
            for parameter in self.accelerator.unwrap_model(self.model).generator.parameters():
                parameter.grad = None
        return loss

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self._parts.means("train"))
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Losses on the evaluation set, and `eval_accuracy` of generated answers to `args.eval_generations` of it.

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

    def predict(self, test_dataset, *args, **kwargs):
        """As in `Trainer`, for a dataset in the same forms as at construction."""
        if "prompt_ids" not in column_names(test_dataset):
            test_dataset = self._tokenize(test_dataset, "test_dataset")
        return super().predict(test_dataset, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in `Trainer`, with the logits as only predictions, and the labels of the same positions.

        Both begin at the token before the answers; as for any causal LM, position i predicts label i + 1.
        """
        ignore_keys = ignore_keys or [part.name for part in fields(SemCoTCausalLMOutput) if part.name != "logits"]
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, logits, None if labels is None else labels[:, -logits.shape[1] :]

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        self._parts.clear("eval")
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(
            {f"{metric_key_prefix}_{name}": mean for name, mean in self._parts.means("eval").items()}
        )
        if self._questions.get(metric_key_prefix):
            output.metrics[f"{metric_key_prefix}_accuracy"] = self._accuracy(self._questions[metric_key_prefix])
        return output

    def _accuracy(self, questions):
        """Share of the questions that generation answers rightly; the processes share them."""
        from ..evaluation import answer_questions

        task = infer_answer_type([row["answer"] for row in questions])
        mine, right = questions[self.args.process_index :: self.args.world_size], 0
        if mine:
            model = self.accelerator.unwrap_model(self.model)
            was_training = model.training
            answers = answer_questions(
                model,
                self.processing_class,
                [row["query"] for row in mine],
                method="semcot",
                batch_size=self.args.per_device_eval_batch_size,
                max_new_tokens=self.args.generation_max_new_tokens,
                answer_prompt=self._answer_prompt,
            )
            model.train(was_training)
            right = sum(check_answer(a.output, row["answer"], task) for a, row in zip(answers, mine, strict=True))
        right = torch.tensor(float(right), device=self.args.device)
        return self.accelerator.reduce(right, "sum").item() / len(questions)

    def _save_checkpoint(self, *args, **kwargs):
        self._in_checkpoint = True
        if self.args.push_to_hub:
            self.create_model_card()
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._in_checkpoint = False

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        # The trainer's state, which is written next, tells that a checkpoint is complete: on all processes.
        self.accelerator.wait_for_everyone()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write the checkpoint's card to README.md of `args.output_dir`, as pushing to the Hub does."""
        if not self.is_world_process_zero():
            return
        names = ("alpha", "step_weight", "kl_weight", "hidden_weight", "projection_warmup", "learning_rate", "seed")
        card = model_card(
            self.model.config,
            model_id=self.hub_model_id or model_name or self.args.output_dir,
            datasets=[dataset_name] if isinstance(dataset_name, str) else dataset_name or (),
            training={"steps": self.state.global_step, **{name: getattr(self.args, name) for name in names}},
            adapters=bool(adapted_layers(self.model.generator)),
        )
        card.data.tags = list(dict.fromkeys([*card.data.tags, *([tags] if isinstance(tags, str) else tags or ())]))
        card.save(os.path.join(self.args.output_dir, "README.md"))

    def _save(self, output_dir=None, state_dict=None):
        """Save a whole model; of a step decoder that is not to be kept only a checkpoint has the weights, apart."""
        steps = None
        if not self.args.keep_step_decoder:
            steps, state_dict = split_step_decoder(self.model.state_dict() if state_dict is None else state_dict)
        with no_loading_bars(), without_step_decoder(self.model.config) if steps else contextlib.nullcontext():
            super()._save(output_dir, state_dict)
        if self._in_checkpoint and self.args.should_save:
            save_adapters(self.model, output_dir)
            if steps:
                save_step_decoder(steps, output_dir)

    def _push_from_checkpoint(self, checkpoint_folder):
        pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if self.is_world_process_zero() and (self.args.hub_always_push or not pushing):
            copy_code_and_tokenizers(checkpoint_folder, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_parts(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_parts(self.state.best_model_checkpoint)

    def _load_parts(self, checkpoint):
        load_adapters(self.model, checkpoint)
        load_step_decoder(self.model, checkpoint)

    def _issue_warnings_after_load(self, load_result):
        apart = ("host.",) if self.args.keep_step_decoder else ("host.", "step_")
        super()._issue_warnings_after_load(unexplained_keys(self.model, load_result, apart))
