"""`semcot distill`: stage 2, the implicit-token generator."""

import shlex
from dataclasses import dataclass, field

from transformers import AutoTokenizer

from ..distillation.config import SemCoTDistillationConfig
from ..distillation.trainer import SemCoTDistillationTrainer
from ..inference.prompting import shares_tokenizer
from ..modeling import SemCoTForCausalLM
from .arguments import DataArguments, ModelArguments, PeftArguments, load_splits, parse, resume_point


@dataclass
class GeneratorArguments:
    """What the generator makes."""

    num_implicit_tokens: int = field(default=5, metadata={"help": "k, the number of implicit tokens."})
    generator_mode: str = field(
        default="parallel", metadata={"help": "'parallel' (one pass, the paper) or 'sequential' (one after another)."}
    )
    projection: str = field(
        default="linear",
        metadata={
            "help": "'linear' (the paper), 'identity' (generator and host of one width) or 'vocabulary' (mixtures of "
            "the host's word embeddings, for a generator that reasons in one word a step)."
        },
    )
    thought: str | None = field(
        default=None,
        metadata={"help": "What <thought> starts as: a word that is one token, such as the reasoning's first one."},
    )
    alignment_encoder: str | None = field(
        default=None, metadata={"help": "Folder or id of the encoder that stage 1 saved; needed while alpha > 0."}
    )


def thought_token_id(thought, generator):
    """The id of the one token that `thought` is to the tokenizer of `generator` (id or path), `None` without one.

    Raises:
        ValueError: when it is more or less than one token.
    """
    if thought is None:
        return None
    tokenizer = AutoTokenizer.from_pretrained(generator)
    ids = tokenizer(thought, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"thought={thought!r} is {len(ids)} tokens ({tokenizer.convert_ids_to_tokens(ids)}) of the generator's "
            "tokenizer: choose a word that is one."
        )
    return ids[0]


def own_tokenizers(host, generator):
    """`host_tokenizer` and `generator_tokenizer` where the generator does not have the host's words as its ids."""
    own = AutoTokenizer.from_pretrained(host)
    try:
        others = AutoTokenizer.from_pretrained(generator)
    except OSError:
        # Without a tokenizer of its own it must have been made for the host's.
        return {}
    if shares_tokenizer(own, others):
        return {}
    print("Host and generator do not share a tokenizer: questions are re-tokenized for the generator.")
    return {"host_tokenizer": own, "generator_tokenizer": others}


def run(argv):
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
        **own_tokenizers(models.host, models.generator),
    )
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
