"""Stage 2: train the generator and its projection so that the frozen host answers as after its reasoning."""

from collections import defaultdict

import torch
from datasets import IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl.trainer.base_trainer import _BaseTrainer

from .answers import check_answer, infer_answer_type
from .data.schema import to_row
from .distillation_config import SemCoTDistillationConfig
from .distillation_data import DistillationCollator, tokenize_row
from .encoder import alignment_layers, encode_hidden_states, load_alignment_encoder
from .losses import distribution_loss, hidden_state_loss, semantic_alignment_loss
from .modeling import SemCoTForCausalLM
from .prompts import answer_prompt_ids, with_answer_prompt

COLUMNS = ("query", "reasoning", "answer", "steps", "prompt", "completion")


class SemCoTDistillationTrainer(_BaseTrainer):
    """Trainer of SemCoT's stage 2 (arXiv 2510.24940, section 3.2), with SIM-CoT's and CODI's objectives beside it.

    The host is frozen, and so are the generator's embedding rows; the projection, the <thought> embedding, the
    generator's layers and the step decoder are trained. For the first `args.projection_warmup` of all steps only the
    projection and <thought> (and the step decoder) are.

    Args:
        model: `SemCoTForCausalLM`, id or path.
        args: `SemCoTDistillationConfig`.
        train_dataset, eval_dataset: rows in the paper's schema (query, reasoning, answer, optionally steps) or TRL's
            prompt/completion, conversational too.
        processing_class: the host's tokenizer.
        alignment_encoder: what stage 1 saved, as a SentenceTransformer or path; needed while `args.alpha` > 0.

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
        **kwargs,
    ):
        if args is None:
            args = SemCoTDistillationConfig("semcot-distillation")
        set_seed(args.seed)
        if isinstance(model, str):
            model = SemCoTForCausalLM.from_pretrained(model)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(model.config.name_or_path)
        if processing_class.pad_token is None:
            processing_class.pad_token = processing_class.eos_token
        model.config.answer_prompt_ids = answer_prompt_ids(processing_class, args.answer_prompt)
        if args.include_host is not None:
            model.config.includes_host = args.include_host
        processing_class = with_answer_prompt(processing_class, args.answer_prompt)
        self.alignment_encoder = None
        if args.alpha > 0:
            if alignment_encoder is None:
                raise ValueError(
                    f"alpha={args.alpha} needs alignment_encoder, which stage 1 makes: pass it, or set alpha=0."
                )
            self.alignment_encoder = load_alignment_encoder(alignment_encoder).requires_grad_(False).eval()
        if args.step_weight > 0 and model.step_decoder is None:
            model.add_step_decoder(_step_decoder(model, args))
        _set_trainable(model, args)

        self._eval_rows = None
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        train_dataset = self._prepare(train_dataset, "train_dataset", model, processing_class, args)
        if eval_dataset is not None:
            if args.eval_generations:
                self._eval_rows = _rows(eval_dataset, "eval_dataset", limit=args.eval_generations)
            eval_dataset = self._prepare(eval_dataset, "eval_dataset", model, processing_class, args)
        if data_collator is None:
            data_collator = DistillationCollator(
                processing_class.pad_token_id,
                with_steps=args.step_weight > 0,
                with_teacher=args.kl_weight > 0 or args.hidden_weight > 0,
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
        # Trainer computes evaluation losses through compute_loss only under these two.
        self.can_return_loss = True
        self.label_names = []
        if self.alignment_encoder is not None:
            self.alignment_encoder.to(self.args.device)
        self.model.add_model_tags(self._tag_names)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["prompt_ids", "completion_ids", "step_ids", "teacher_ids", "reasoning_embedding"]

    def _prepare(self, dataset, name, model, tokenizer, args):
        """Tokenize a dataset, check its lengths and add the reasoning's embeddings."""
        if dataset is None:
            raise ValueError(f"{name} is required: pass a Dataset of query, reasoning and answer.")
        streaming = isinstance(dataset, IterableDataset)
        if not streaming and len(dataset) == 0:
            raise ValueError(f"{name} is empty: pass at least one row.")
        count = model.config.num_implicit_tokens
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = args.max_length or context
        size = len(model.config.answer_prompt_ids)

        def tokenize(example):
            row = _complete_row(example, name, args)
            ids = tokenize_row(row, tokenizer, size, count, args.steps_per_token)
            length = len(ids["prompt_ids"]) + count + len(ids["completion_ids"])
            if longest is not None and length > longest:
                raise ValueError(
                    f"{name} has a row of {length} tokens (prompt, {count} implicit tokens and answer), beyond "
                    f"max_length={longest}: drop long rows or raise max_length. Its query starts "
                    f"{row['query'][:80]!r}."
                )
            return {**ids, "reasoning": row["reasoning"]}

        columns = dataset.column_names
        options = {} if streaming else {"num_proc": args.dataset_num_proc, "desc": f"Tokenizing {name}"}
        dataset = dataset.map(tokenize, remove_columns=columns, **options)
        if self.alignment_encoder is not None:
            encoder = self.alignment_encoder

            def embed(batch):
                vectors = encoder.encode(batch["reasoning"], batch_size=64, show_progress_bar=False)
                return {"reasoning_embedding": vectors.tolist()}

            options = {} if streaming else {"desc": f"Encoding the reasoning of {name}"}
            dataset = dataset.map(embed, batched=True, batch_size=256, **options)
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Weighted sum of the objectives; each part is logged. All trained parameters are used in `model.forward`."""
        args = self.args
        teacher_ids = inputs.pop("teacher_input_ids", None)
        teacher_mask = inputs.pop("teacher_attention_mask", None)
        target = inputs.pop("reasoning_embedding", None)
        width = int((inputs["completion_mask"].sum(dim=0) > 0).sum())
        by_state = target is not None and args.alignment_view == "hidden_state"
        outputs = model(
            **inputs,
            logits_to_keep=width + 1,
            use_cache=False,
            output_hidden_states=by_state or args.hidden_weight > 0,
        )
        parts = {"answer_loss": (1 - args.alpha, outputs.loss)}
        if target is not None:
            parts["alignment_loss"] = (args.alpha, semantic_alignment_loss(self._embed(outputs), target))
        if outputs.step_loss is not None:
            parts["step_loss"] = (args.step_weight, outputs.step_loss)
        if teacher_ids is not None:
            teacher = self._teacher(teacher_ids, teacher_mask, width)
            if args.kl_weight > 0:
                labels = inputs["labels"][:, -width - 1 :]
                parts["kl_loss"] = (args.kl_weight, distribution_loss(outputs.logits, teacher.logits, labels))
            if args.hidden_weight > 0:
                before = -width - 1
                student = torch.stack([layer[:, before] for layer in outputs.hidden_states[1:]])
                states = torch.stack([layer[:, before] for layer in teacher.hidden_states[1:]])
                parts["hidden_loss"] = (args.hidden_weight, hidden_state_loss(student, states))
        loss = sum(weight * value for weight, value in parts.values())
        mode = "train" if self.model.training else "eval"
        for name, (_, value) in parts.items():
            self._metrics[mode][name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def _embed(self, outputs):
        """f of the implicit tokens, through the encoder's input or at the layer its text states are taken from."""
        tokens = outputs.implicit_embeddings
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        if self.args.alignment_view == "embedding":
            features = {"inputs_embeds": tokens.float(), "attention_mask": mask}
            return self.alignment_encoder(features)["sentence_embedding"]
        layer, _ = alignment_layers(self.alignment_encoder)
        columns = outputs.implicit_columns[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        states = outputs.hidden_states[layer]
        states = states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))
        return encode_hidden_states(self.alignment_encoder, states.float(), mask)

    @torch.no_grad()
    def _teacher(self, input_ids, attention_mask, width):
        """The frozen host behind its explicit chain of thought, at the same answer tokens."""
        host = self.accelerator.unwrap_model(self.model).host
        positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        return host(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            logits_to_keep=width + 1,
            output_hidden_states=self.args.hidden_weight > 0,
            use_cache=False,
        )

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step < self.args.projection_warmup * self.state.max_steps:
            # AdamW passes over parameters without a gradient, so neither its step nor its decay moves the generator.
            for parameter in self.accelerator.unwrap_model(self.model).generator.parameters():
                parameter.grad = None
        return loss

    def log(self, logs, start_time=None):
        mode = "train" if self.model.training else "eval"
        for name, values in self._metrics[mode].items():
            mean = self.accelerator.gather(torch.stack(values).mean()).mean().item()
            logs[name if mode == "train" else f"eval_{name}"] = round(mean, 6)
        self._metrics[mode].clear()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Losses on the evaluation set, and `eval_accuracy` of generated answers to `args.eval_generations` of it."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and self._eval_rows:
            metrics[f"{metric_key_prefix}_accuracy"] = self._accuracy()
            self.log({f"{metric_key_prefix}_accuracy": metrics[f"{metric_key_prefix}_accuracy"]})
        return metrics

    def _accuracy(self):
        from .evaluation import answer_questions

        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        answers = answer_questions(
            model,
            self.processing_class,
            [row["query"] for row in self._eval_rows],
            method="semcot",
            batch_size=self.args.per_device_eval_batch_size,
            max_new_tokens=self.args.generation_max_new_tokens,
        )
        model.train(was_training)
        task = infer_answer_type([row["answer"] for row in self._eval_rows])
        right = [
            check_answer(answer.output, row["answer"], task)
            for answer, row in zip(answers, self._eval_rows, strict=True)
        ]
        return sum(right) / len(right)


def _complete_row(example, name, args):
    row = _to_row(example, name)
    if not row["query"] or not row["answer"]:
        raise ValueError(f"{name} has a row without query or answer: {str(example)[:120]}. Drop or complete it.")
    needs = [option for option in ("alpha", "step_weight", "kl_weight", "hidden_weight") if getattr(args, option) > 0]
    if needs and not row["reasoning"]:
        raise ValueError(
            f"{name} has a row without reasoning, which {', '.join(needs)} > 0 need: {str(example)[:120]}. "
            "Drop or complete it, or set them to 0."
        )
    return row


def _rows(dataset, name, limit):
    rows = []
    for example in dataset:
        if len(rows) == limit:
            break
        rows.append(_to_row(example, name))
    return rows


def _to_row(example, name):
    columns = {column: column for column in COLUMNS if column in example}
    if not ({"query", "prompt"} & set(columns) and {"answer", "completion"} & set(columns)):
        raise ValueError(
            f"{name} has the columns {sorted(example)}: needs query and answer (with reasoning and steps), or TRL's "
            "prompt and completion. Rename them, or load the dataset with load_reasoning_dataset(columns=...)."
        )
    return to_row(example, columns)


def _step_decoder(model, args):
    source = model.config.generator_name_or_path if args.step_decoder == "generator" else args.step_decoder
    if source is None:
        raise ValueError(
            "step_decoder='generator' needs config.generator_name_or_path, which this model does not record: pass "
            "step_decoder with the id or path of a causal LM."
        )
    return AutoModelForCausalLM.from_pretrained(source, dtype=model.generator.dtype)


def _set_trainable(model, args):
    model.requires_grad_(False)
    for module in (model.projection, model.generator, model.step_decoder, model.step_projection):
        if module is not None:
            module.requires_grad_(True)
    model.thought_embedding.requires_grad_(True)
    # Of the generator's embedding rows only <thought>, a parameter of its own, is trained (SemCoT, section 3.2).
    model.generator.get_input_embeddings().requires_grad_(False)
