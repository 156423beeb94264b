"""`semcot distill`: stage 2, the training of the implicit-token generator."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from ..distillation.config import SemCoTDistillationConfig
from ..distillation.trainer import SemCoTDistillationTrainer
from ..modeling import SemCoTForCausalLM
from ..options import option
from ..training.operations import train
from ..training.processes import end_training
from .arguments import CountArguments, DataArguments, ModelArguments, PeftArguments, load_splits, parse, resume_point

# Defaults of the recipes, where they differ from those of the flags.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "words": {
        "generator_mode": "sequential",
        "projection": "vocabulary",
        "thought_length": "adaptive",
        "mixture_top_k": 8,
        "word_feedback": True,
        "num_implicit_tokens": 48,
        "alpha": 0.0,
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "lora_target_modules": ["all-linear"],
        "words_num_train_epochs": 2.0,
        "words_learning_rate": 3e-4,
        "learning_rate": 3e-5,
        "lr_scheduler_type": "cosine",
        "per_device_train_batch_size": 16,
        "num_train_epochs": 0,
        "logging_steps": 10,
    },
}


@dataclass
class GeneratorArguments:
    """The generator's implicit tokens."""

    recipe: str = option(
        "paper",
        "'paper' (the paper's stage 2) or 'words': the generator first learns to write short reasoning, in words that "
        "become mixtures of the host's word embeddings, of adaptive length. 'words' sets other defaults for the flags "
        "of the generator, its adapters and the schedule, and trains through the host only with --max_steps or "
        "--num_train_epochs.",
    )
    thought_length: str = option(
        "fixed", "'fixed', or 'adaptive': each thought ends by itself, with at most num_implicit_tokens tokens."
    )
    mixture_top_k: int | None = option(
        None, "Number of words in each mixture (projection='vocabulary'); 1 gives the words themselves."
    )
    word_feedback: bool = option(
        False,
        "Whether a generator that thinks in words reads its most probable word after each step, as in ordinary "
        "decoding, instead of the mixture; the host reads mixtures either way.",
    )
    num_implicit_tokens: int = option(5, "k, the number of implicit tokens.")
    generator_mode: str = option("parallel", "'parallel' (one pass, the paper) or 'sequential' (one after another).")
    projection: str = option(
        "linear",
        "'linear' (the paper), 'identity' (generator and host of equal hidden size) or 'vocabulary' (mixtures of the "
        "host's word embeddings, for a generator that reasons in one word per step).",
    )
    thought: str | None = option(
        None, "Initial embedding of <thought>: a word of one token, such as the first word of the reasoning."
    )
    alignment_encoder: str | None = option(
        None, "Folder or id of the encoder that stage 1 saved; required if alpha > 0."
    )


def thought_token_id(thought: str | None, generator: str) -> int | None:
    """Return the token id of the word `thought` for the tokenizer of `generator` (id or path); `None` without a word.

    Raises:
        ValueError: for a word that is not exactly one token.
    """
    if thought is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(generator)
    ids = tokenizer(thought, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"thought={thought!r} is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)}) of the generator's "
            "tokenizer: choose a word that is one token."
        )
    return ids[0]


def run(argv: Sequence[str]) -> None:
    """Train the generator against the frozen host and save the SemCoT checkpoint in `--output_dir`."""
    parts = (
        DataArguments,
        ModelArguments,
        GeneratorArguments,
        PeftArguments,
        CountArguments,
        SemCoTDistillationConfig,
    )
    # Flags are checked with the recipe's defaults.
    recipe = parse("semcot distill", parts, list(argv), wanted=(GeneratorArguments,))[0].recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r}: must be one of {tuple(RECIPES)}.")
    data, models, generator, peft, measured, args = parse("semcot distill", parts, list(argv), RECIPES[recipe])
    splits = load_splits(data, "train")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        models.host,
        models.generator,
        num_implicit_tokens=generator.num_implicit_tokens,
        generator_mode=generator.generator_mode,
        projection=generator.projection,
        thought_length=generator.thought_length,
        mixture_top_k=generator.mixture_top_k,
        word_feedback=generator.word_feedback,
        recipe="words" if recipe == "words" else None,
        host_kwargs=args.model_init_kwargs,
        generator_kwargs=args.model_init_kwargs,
        thought_token_id=thought_token_id(generator.thought, models.generator),
    )
    if model.config.separate_generator_tokenizer:
        print("Host and generator do not share a tokenizer: questions are re-tokenized for the generator.")
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=AutoTokenizer.from_pretrained(models.host),
        alignment_encoder=generator.alignment_encoder,
        peft_config=peft.peft_config,
    )
    train(trainer, resume_point(args.resume_from_checkpoint), count_operations=measured.count_operations)
    trainer.save_model(args.output_dir)
    end_training(trainer)
    folder, report = map(shlex.quote, (args.output_dir, f"{args.output_dir}-evaluation"))
    print(
        f"The SemCoT checkpoint is in {args.output_dir}. "
        f"Next: semcot evaluate --model {folder} {data.flags()} --output_dir {report}"
    )
