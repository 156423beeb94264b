"""The paper's ablation without a small generator: the host itself, with LoRA, makes the implicit tokens.

    python examples/lora_host_as_generator.py --alpha 0 --max_steps 100 --output_dir runs/lora

LoRA has rank 16 (alpha 32) on the query and value projections. There is no projection, since both hidden sizes are
equal. The host that answers stays frozen; the copy that makes the tokens is saved with its adapters merged in. By
default the host is the demo's; `--host` and `--dataset` take other ids or paths, and `--alpha` above 0 needs
`--alignment_encoder`, the folder that stage 1 wrote.
"""

from dataclasses import dataclass, field

from peft import LoraConfig
from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import HOST_PATH


@dataclass
class Arguments:
    """The host and the questions."""

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
        arguments.host, arguments.host, num_implicit_tokens=5, projection="identity"
    )
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows.select(range(min(arguments.max_train_samples or len(rows), len(rows)))),
        processing_class=AutoTokenizer.from_pretrained(arguments.host),
        alignment_encoder=arguments.alignment_encoder,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)


if __name__ == "__main__":
    main()
