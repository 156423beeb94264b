"""Tokens made one after another, each held to its reasoning step by SIM-CoT's step decoder, which then reads them.

    python examples/sequential_step_decoder.py --dataset multiplication --output_dir runs/step_decoder

The decoder starts as a copy of the generator, is trained beside it and never runs in generation. Kept in the
checkpoint, it tells in words what each implicit token says.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer
from trl import TrlParser

from semcot_hf import SemCoTDistillationConfig, SemCoTDistillationTrainer, SemCoTForCausalLM, load_reasoning_dataset
from semcot_hf.demo import GENERATOR_PATH, HOST_PATH


@dataclass
class Arguments:
    """Which models and questions."""

    host: str = field(default=str(HOST_PATH), metadata={"help": "Id or path of the host."})
    generator: str = field(default=str(GENERATOR_PATH), metadata={"help": "Id or path of the generator."})
    dataset: str = field(default="coin_flip", metadata={"help": "A generated task, a Hub id, a file or folder."})
    num_implicit_tokens: int = field(default=5, metadata={"help": "k; surplus steps join the last token."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use the first so many training rows."})


@torch.no_grad()
def read_tokens(model, tokenizer, question, max_new_tokens=32):
    """What the step decoder says that each implicit token of a question tells."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    tokens = model.implicit_embeddings(prompt["input_ids"].to(model.device))
    first = model.step_projection(tokens.to(model.step_projection.weight.dtype))[0, :, None]
    steps = model.step_decoder.generate(
        inputs_embeds=first,
        attention_mask=torch.ones(first.shape[:2], dtype=torch.long, device=first.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(steps, skip_special_tokens=True)


def main(argv=None):
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
    print(rows[0]["query"])
    for number, step in enumerate(read_tokens(model, trainer.processing_class, rows[0]["query"]), start=1):
        print(f"token {number}: {step!r}")


if __name__ == "__main__":
    main()
