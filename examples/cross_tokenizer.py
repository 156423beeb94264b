"""Stage 2 with a generator that does not share the host's tokenizer: questions are re-tokenized for it.

    python examples/cross_tokenizer.py --generator EleutherAI/pythia-14m \
        --alpha 0 --max_steps 100 --output_dir runs/cross_tokenizer

By default the host is the demo's. `--host`, `--generator` and `--dataset` take any ids or paths; `--alpha` above 0
needs `--alignment_encoder`, the folder that stage 1 wrote.
The checkpoint holds both tokenizers and is used like any other; its prompts are the host's.
"""

from dataclasses import dataclass, field

from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import HOST_PATH


@dataclass
class Arguments:
    """The models and the questions."""

    generator: str = field(metadata={"help": "Id or path of the generator, with its own tokenizer."})
    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host."})
    dataset: str = field(default="facts", metadata={"help": "A generated task, a Hub id, a file or folder."})
    alignment_encoder: str | None = field(
        default=None, metadata={"help": "Folder of stage 1's output, for alpha > 0."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Number of training rows to use."})


def main(argv: list[str] | None = None) -> None:
    """Train and save the model."""
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
