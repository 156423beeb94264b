"""Sequential implicit tokens with SIM-CoT's step decoder, which reads each token back as its reasoning step.

    python examples/sequential_step_decoder.py --dataset facts --max_steps 100 --output_dir runs/step_decoder

The step decoder starts as a copy of the generator, is trained with it and takes no part in generation. It is saved in
the checkpoint, so that the words that each implicit token stands for can be read later.
"""

from dataclasses import dataclass, field

from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH


@dataclass
class Arguments:
    """The models and the questions."""

    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host."})
    generator: str = field(default=str(GENERATOR_PATH), metadata={"help": "Id or path of the generator."})
    dataset: str = field(default="facts", metadata={"help": "A generated task, a Hub id, a file or folder."})
    num_implicit_tokens: int = field(default=5, metadata={"help": "k; the last token stands for all steps beyond k."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Number of training rows to use."})


def main(argv: list[str] | None = None) -> None:
    """Train and save the model, then print what its tokens stand for on one question."""
    arguments, args = TrlParser((Arguments, SemCoTDistillationConfig)).parse_args_and_config(args=argv)
    if args.step_weight == 0:
        args.step_weight = 1.0
    args.alpha, args.projection_warmup = 0.0, 0.0
    rows = load_reasoning_dataset(arguments.dataset)["train"]
    rows = rows.select(range(min(arguments.max_train_samples or len(rows), len(rows))))
    model = SemCoTForCausalLM.from_host_generator_pretrained(
        arguments.host,
        arguments.generator,
        num_implicit_tokens=arguments.num_implicit_tokens,
        generator_mode="sequential",
    )
    trainer = SemCoTDistillationTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(arguments.host),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    model.eval()
    # The trainer's tokenizer has a chat template that ends with the answer prompt.
    chat = [{"role": "user", "content": rows[0]["query"]}]
    prompt = trainer.processing_class.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    prompt = prompt.to(model.device)
    print(rows[0]["query"])
    [steps] = model.implicit_steps(**prompt, tokenizer=trainer.processing_class)
    for number, step in enumerate(steps, start=1):
        print(f"token {number}: {step!r}")


if __name__ == "__main__":
    main()
