"""SemCoT as in the paper, without alignment, encoder, warm-up or small generator; SemCoT (soft words); untrained."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.trainer import SemCoTAlignmentTrainer
from ...distillation.config import SemCoTDistillationConfig
from ...distillation.trainer import SemCoTDistillationTrainer
from ...modeling import SemCoTForCausalLM
from ...training.operations import OperationCounter
from .training import Trained, TrainingSetup, count_trainable, logged_losses, training_arguments

# The paper's weight of the semantic alignment (GSM8K).
ALPHA = 0.25
# Length of stage 1, relative to stage 2.
ALIGNMENT_SHARE = 0.1
ALIGNMENT_ROWS = 4_000
# Words are trained through the host at a fraction of the rate at which they were learned: gradients through a chain of
# discrete choices degrade them (NOTES.md).
JOINT_RATE = 0.01
# Generators that are wider learn their words through adapters, as with `semcot distill --recipe words`.
WHOLE_WIDTH = 512


def train_semcot(setup: TrainingSetup) -> Trained:
    """Train SemCoT as in the paper: parallel tokens, alignment and answer loss, projection first."""
    return _train(setup)


def train_without_encoder(setup: TrainingSetup) -> Trained:
    """Train the paper's ablation without the encoder: cosine of mean-pooled states."""
    return _train(setup, alignment_view="mean_pooled")


def train_without_alignment(setup: TrainingSetup) -> Trained:
    """Train the paper's ablation without the alignment loss L_reason: alpha 0."""
    return _train(setup, alpha=0.0)


def train_without_warmup(setup: TrainingSetup) -> Trained:
    """Train the paper's ablation without the phase that trains the projection only."""
    return _train(setup, projection_warmup=0.0)


def train_host_as_generator(setup: TrainingSetup) -> Trained:
    """Train the paper's ablation without a small generator: the host with LoRA r16 alpha32 on q and v."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    options = {"projection": "identity"}
    return _train(setup, generator=copy.deepcopy(setup.host), model_options=options, peft_config=lora)


def train_soft_words(setup: TrainingSetup) -> Trained:
    """Train SemCoT (soft words) by the library's words phase, then for `joint_share` of the steps through the host.

    Raises:
        ValueError: for rows that cannot be learned as words, with the reason (`check_words`).
    """
    model = _words_model(setup)
    width = model.generator.config.get_text_config().hidden_size
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear") if width > WHOLE_WIDTH else None
    joint = round(setup.joint_share * setup.steps)
    common = {**training_arguments(setup), "learning_rate": JOINT_RATE * setup.learning_rate}
    args = SemCoTDistillationConfig(
        str(setup.work_dir / "distillation"),
        words_max_steps=setup.steps,
        words_column=setup.words_column,
        words_learning_rate=setup.learning_rate,
        num_train_epochs=0,
        max_steps=joint if joint else -1,
        alpha=0.0,
        projection_warmup=0.0,
        **common,
    )
    return _trained(setup, model, args, steps=setup.steps + joint, peft_config=lora)


def leave_untrained(setup: TrainingSetup) -> Trained:
    """Return the pair of SemCoT (soft words) as it is: the generator's own reasoning as soft words for the host."""
    return Trained(_words_model(setup), "semcot", 0, trained=False)


def _words_model(setup: TrainingSetup) -> SemCoTForCausalLM:
    return SemCoTForCausalLM.from_host_generator_pretrained(
        setup.host,
        setup.generator,
        recipe="words",
        tokenizer=setup.tokenizer,
        num_implicit_tokens=setup.words_limit,
    )


def _train(
    setup: TrainingSetup,
    *,
    alpha: float = ALPHA,
    generator: PreTrainedModel | None = None,
    model_options: Mapping[str, Any] | None = None,
    peft_config: LoraConfig | None = None,
    **objectives: Any,
) -> Trained:
    needs_encoder = alpha > 0 and objectives.get("alignment_view") != "mean_pooled"
    encoder, operations, texts = _encoder(setup, _rows(setup)) if needs_encoder else (None, 0.0, 0)
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        setup.host,
        generator or setup.generator,
        num_implicit_tokens=setup.num_implicit_tokens,
        **(model_options or {}),
    )
    args = SemCoTDistillationConfig(
        str(setup.work_dir / "distillation"),
        max_steps=setup.steps,
        alpha=alpha,
        **{"projection_warmup": 0.1, **objectives},
        **training_arguments(setup),
    )
    made = _trained(setup, model, args, steps=setup.steps, peft_config=peft_config, encoder=encoder)
    return replace(made, operations=operations + made.operations, seen_questions=texts + made.seen_questions)


def _trained(
    setup: TrainingSetup,
    model: SemCoTForCausalLM,
    args: SemCoTDistillationConfig,
    *,
    steps: int,
    peft_config: LoraConfig | None,
    encoder: str | None = None,
) -> Trained:
    """Train a model by stage 2, in `steps` steps of all phases."""
    counter = OperationCounter(alone=(args.words_max_steps,))
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=_rows(setup),
        processing_class=setup.tokenizer,
        alignment_encoder=encoder,
        peft_config=peft_config,
        callbacks=[counter],
    )
    trainer.remove_callback(PrinterCallback)
    trainable = count_trainable(model)
    trainer.train()
    return Trained(
        model,
        "semcot",
        trainable,
        losses=logged_losses(trainer),
        operations=counter.total,
        seen_questions=steps * setup.batch_size,
    )


def _rows(setup: TrainingSetup) -> Dataset:
    return Dataset.from_list(list(setup.train_rows))


def _encoder(setup: TrainingSetup, rows: Dataset) -> tuple[str, float, int]:
    """Run stage 1 on the setup's questions; return its folder, its operations, and the number of questions seen."""
    folder, counter = str(setup.work_dir / "encoder"), OperationCounter()
    steps, batch_size = max(1, int(setup.steps * ALIGNMENT_SHARE)), max(2, setup.batch_size)
    trainer = SemCoTAlignmentTrainer(
        model=copy.deepcopy(setup.host),
        args=SemCoTAlignmentConfig(
            str(setup.work_dir / "alignment"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            seed=setup.seed,
            save_strategy="no",
            eval_strategy="no",
            use_cpu=setup.device == "cpu",
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=rows.select(range(min(ALIGNMENT_ROWS, len(rows)))),
        processing_class=setup.tokenizer,
        callbacks=[counter],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(folder)
    return folder, counter.total, steps * batch_size
