"""SemCoT as in the paper, without alignment, encoder, warm-up or small generator, and SemCoT (soft words)."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PreTrainedModel, PrinterCallback

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.trainer import SemCoTAlignmentTrainer
from ...distillation.config import SemCoTDistillationConfig
from ...distillation.trainer import SemCoTDistillationTrainer
from ...modeling import SemCoTForCausalLM
from ..recipe import keep_layers
from .training import OperationCounter, Trained, TrainingSetup, count_trainable, logged_losses, training_arguments
from .words import teach_words

# The paper's weight of the semantic alignment (GSM8K).
ALPHA = 0.25
# Length of stage 1, relative to stage 2.
ALIGNMENT_SHARE = 0.1
ALIGNMENT_ROWS = 4_000
# Tokens that are words already are distilled for a share of the steps, at a fraction of the rate at which the words
# were learned: gradients through a chain of discrete choices degrade them (NOTES.md).
WORDS_DISTILLATION_SHARE, WORDS_DISTILLATION_RATE = 0.2, 0.01


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
    """Train SemCoT (soft words) by the setup's `Recipe`: the generator learns words, then both are distilled."""
    recipe = setup.soft_words
    if recipe.tokens is not None:
        setup = replace(setup, num_implicit_tokens=recipe.tokens)
    options: dict[str, Any] = {"generator_mode": recipe.mode, "projection": recipe.projection}
    if recipe.thought is not None:
        options["thought_token_id"] = setup.tokenizer(recipe.thought, add_special_tokens=False)["input_ids"][-1]
    generator: PreTrainedModel | None = None
    if recipe.words or recipe.layers is not None:
        generator = AutoModelForCausalLM.from_pretrained(setup.generator)
    if generator is not None and recipe.layers is not None:
        keep_layers(generator, recipe.layers)
    taught = teach_words(setup, generator) if generator is not None and recipe.words else None
    if taught is not None and recipe.projection == "vocabulary":
        setup = replace(
            setup,
            steps=max(1, round(WORDS_DISTILLATION_SHARE * setup.steps)),
            learning_rate=WORDS_DISTILLATION_RATE * setup.learning_rate,
        )
    trained = _train(
        setup,
        generator=generator,
        model_options=options,
        alpha=0.1,
        step_weight=recipe.step_weight,
        steps_per_token=setup.steps_per_token,
        projection_warmup=0.0,
    )
    if taught is None:
        return trained
    return replace(
        trained,
        losses=[*taught.losses, *((step + taught.losses[-1][0], loss) for step, loss in trained.losses)],
        operations=taught.operations + trained.operations,
        seen_questions=taught.seen_questions + trained.seen_questions,
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
    rows = Dataset.from_list(list(setup.train_rows))
    needs_encoder = alpha > 0 and objectives.get("alignment_view") != "mean_pooled"
    encoder, operations, texts = _encoder(setup, rows) if needs_encoder else (None, 0.0, 0)
    counter = OperationCounter()
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        setup.host,
        generator or setup.generator,
        num_implicit_tokens=setup.num_implicit_tokens,
        **(model_options or {}),
    )
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=SemCoTDistillationConfig(
            str(setup.work_dir / "distillation"),
            max_steps=setup.steps,
            alpha=alpha,
            **{"projection_warmup": 0.1, **objectives},
            **training_arguments(setup),
        ),
        train_dataset=rows,
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
        operations=operations + counter.total,
        seen_questions=texts + setup.steps * setup.batch_size,
    )


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
