"""`semcot distill`: stage 2, the training of the implicit-token generator."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import AutoTokenizer

from ..distillation.config import SemCoTDistillationConfig
from ..distillation.trainer import SemCoTDistillationTrainer
from ..modeling import SemCoTForCausalLM
from ..options import option
from .arguments import DataArguments, ModelArguments, PeftArguments, load_splits, parse, resume_point


@dataclass
class GeneratorArguments:
    """The generator's implicit tokens."""

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
    data, models, generator, peft, args = parse(
        "semcot distill",
        (DataArguments, ModelArguments, GeneratorArguments, PeftArguments, SemCoTDistillationConfig),
        argv,
    )
    splits = load_splits(data, "train")
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        models.host,
        models.generator,
        num_implicit_tokens=generator.num_implicit_tokens,
        generator_mode=generator.generator_mode,
        projection=generator.projection,
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
    trainer.train(resume_from_checkpoint=resume_point(args.resume_from_checkpoint))
    trainer.save_model(args.output_dir)
    folder, report = map(shlex.quote, (args.output_dir, f"{args.output_dir}-evaluation"))
    print(
        f"The SemCoT checkpoint is in {args.output_dir}. "
        f"Next: semcot evaluate --model {folder} {data.flags()} --output_dir {report}"
    )
