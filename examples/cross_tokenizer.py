"""A generator that does not share the host's tokenizer: queries are re-tokenized for it.

    python examples/cross_tokenizer.py --host Qwen/Qwen2.5-7B-Instruct \
        --generator HuggingFaceTB/SmolLM2-360M-Instruct \
        --dataset data/gsm8k --alignment_encoder runs/qwen/encoder --output_dir runs/cross_tokenizer

The checkpoint carries both tokenizers, and is used as any other. Its prompts are the host's.
"""

from dataclasses import dataclass, field

from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import HOST_PATH


@dataclass
class Arguments:
    """Which models and questions."""

    generator: str = field(metadata={"help": "Id or path of the generator, with a tokenizer of its own."})
    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host."})
    dataset: str = field(default="coin_flip", metadata={"help": "A generated task, a Hub id, a file or folder."})
    alignment_encoder: str | None = field(default=None, metadata={"help": "What stage 1 saved, while alpha > 0."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many training rows."})


def main(argv=None):
    arguments, args = TrlParser((Arguments, SemCoTDistillationConfig)).parse_args_and_config(args=argv)
    rows = load_reasoning_dataset(arguments.dataset)["train"]
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        arguments.host,
        arguments.generator,
        host_tokenizer=arguments.host,
        generator_tokenizer=arguments.generator,
        num_implicit_tokens=5,
    )
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows.select(range(min(arguments.max_train_samples or len(rows), len(rows)))),
        processing_class=AutoTokenizer.from_pretrained(arguments.host),
        alignment_encoder=arguments.alignment_encoder,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
