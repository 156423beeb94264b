"""SemCoT as in the paper, its four ablations, and SemCoT (soft words), by the package's own two trainers."""

import copy
from dataclasses import replace

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, PrinterCallback

from ...alignment.config import SemCoTAlignmentConfig
from ...alignment.trainer import SemCoTAlignmentTrainer
from ...distillation.config import SemCoTDistillationConfig
from ...distillation.trainer import SemCoTDistillationTrainer
from ...modeling import SemCoTForCausalLM
from ..recipe import keep_layers
from .training import OperationCounter, Trained, TrainingSetup, count_trainable, logged_losses, optimization
from .words import teach_words

# The paper's weight of the semantic alignment (GSM8K).
ALPHA = 0.25
# Stage 1 in steps, for each step of stage 2.
ALIGNMENT_SHARE = 0.1
ALIGNMENT_ROWS = 4_000
# Of tokens that are words from the start, for each step of the budget, and its rate for each of the rate at which they
# were learned: gradients through a chain of choices undo them (NOTES.md).
WORDS_DISTILLATION_SHARE, WORDS_DISTILLATION_RATE = 0.2, 0.01


def train_semcot(setup: TrainingSetup) -> Trained:
    """As in the paper: parallel tokens, alignment and answer loss, projection first."""
    return _train(setup)


def train_without_encoder(setup: TrainingSetup) -> Trained:
    """The paper's ablation without f: cosine of mean-pooled states."""
    return _train(setup, alignment_view="mean_pooled")


def train_without_alignment(setup: TrainingSetup) -> Trained:
    """The paper's ablation without L_reason: alpha 0."""
    return _train(setup, alpha=0.0)


def train_without_warmup(setup: TrainingSetup) -> Trained:
    """The paper's ablation without the phase that trains the projection only."""
    return _train(setup, projection_warmup=0.0)


def train_host_as_generator(setup: TrainingSetup) -> Trained:
    """The paper's ablation without a small generator: the host itself with LoRA r16 alpha32 on q and v."""
    generator = copy.deepcopy(setup.host)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    return _train(setup, generator=generator, model_options={"projection": "identity"}, peft_config=lora)


def train_semcot_soft_words(setup: TrainingSetup) -> Trained:
    """As the task's validation questions want it: see `Recipe`."""
    best = setup.soft_words
    if best.tokens is not None:
        setup = replace(setup, num_implicit_tokens=best.tokens)
    options = {"generator_mode": best.mode, "projection": best.projection}
    if best.thought is not None:
        ids = setup.tokenizer(best.thought, add_special_tokens=False)["input_ids"]
        options["thought_token_id"] = ids[-1]
    distill = {
        "alpha": 0.1,
        "step_weight": best.step_weight,
        "steps_per_token": setup.steps_per_token,
        "projection_warmup": 0.0,
        "model_options": options,
    }
    if best.words == 0 and best.layers is None:
        return _train(setup, **distill)
    generator = AutoModelForCausalLM.from_pretrained(setup.generator)
    if best.layers is not None:
        keep_layers(generator, best.layers)
    if best.words == 0:
        return _train(setup, generator=generator, **distill)
    taught = teach_words(setup, generator)
    distilled = setup
    if best.projection == "vocabulary":
        distilled = replace(
            setup,
            steps=max(1, round(WORDS_DISTILLATION_SHARE * setup.steps)),
            learning_rate=WORDS_DISTILLATION_RATE * setup.learning_rate,
        )
    trained = _train(distilled, generator=taught.model, **distill)
    return replace(
        trained,
        losses=[*taught.losses, *((step + taught.losses[-1][0], loss) for step, loss in trained.losses)],
        operations=taught.operations + trained.operations,
        seen_questions=taught.seen_questions + trained.seen_questions,
    )


def _train(setup, *, alpha=ALPHA, generator=None, model_options=None, peft_config=None, **objectives):
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
    args = SemCoTDistillationConfig(
        str(setup.work_dir / "distillation"),
        max_steps=setup.steps,
        per_device_train_batch_size=setup.batch_size,
        alpha=alpha,
        **{"projection_warmup": 0.1, **objectives},
        **optimization(setup),
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=setup.tokenizer,
        alignment_encoder=encoder,
        peft_config=peft_config,
        callbacks=[counter],
    )
    trainer.remove_callback(PrinterCallback)
    trainable = count_trainable(trainer.model)
    trainer.train()
    return Trained(
        trainer.model,
        "semcot",
        trainable,
        losses=logged_losses(trainer),
        operations=operations + counter.total,
        seen_questions=texts + setup.steps * setup.batch_size,
    )


def _encoder(setup, rows):
    """Stage 1 on the setup's questions: its folder, its operations, and how often it saw a question."""
    folder, counter = setup.work_dir / "encoder", OperationCounter()
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
    trainer.save_model(str(folder))
    return str(folder), counter.total, steps * batch_size
