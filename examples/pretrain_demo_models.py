"""Make the demo's host and generator: tiny Llamas that reason in words about CoinFlip.

    python examples/pretrain_demo_models.py --model generator --output_dir semcot_hf/demo/models/generator
    python examples/pretrain_demo_models.py --model host --output_dir semcot_hf/demo/models/host

First words, then answers. The generator learns to reason, from few people to many. The host is the generator with
eight more layers, which begin as the identity (block expansion, arXiv 2401.02415), and learns to answer at once beside
reasoning; answers at once mixed in from the start would keep a model of this size from learning to reason.
"""

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from semcot_hf.answers import check_answer
from semcot_hf.data.tasks import coin_flip
from semcot_hf.evaluation import accuracy_interval, answer_questions
from semcot_hf.prompts import ANSWER_PROMPT, prompt_text

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '<|user|>' + message.content + '<|end|>' }}"
    "{%- elif message.role == 'assistant' %}{{ '<|assistant|>' + message.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)
GENERATOR_LAYERS = 2
HOST_LAYERS = 10
LEARNING_RATES = {"host": 5e-4, "generator": 3e-3}
# (steps, fewest people, most people, share of direct answers)
CURRICULA = {
    "host": [(240, 3, 10, 0.25)],
    "generator": [(400, 1, 3, 0.0), (400, 2, 6, 0.0), (800, 3, 10, 0.0)],
}
BATCH_SIZE = 64


@dataclass
class Arguments:
    """Which of the two models, and where it goes."""

    output_dir: str = field(metadata={"help": "Folder of the model."})
    model: str = field(default="host", metadata={"help": "host or generator."})
    generator: str = field(
        default="semcot_hf/demo/models/generator",
        metadata={"help": "Finished generator the host grows from."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, questions and order."})
    steps_factor: float = field(default=1.0, metadata={"help": "Multiplies all numbers of steps (for a quick try)."})
    eval_samples: int = field(default=1000, metadata={"help": "Held-out questions judged at the end."})


def train_tokenizer():
    """Byte-level BPE on the task's own text, so that names and words are single tokens and any text can be encoded."""
    rows = coin_flip.generate(4000, seed=7)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for row in rows for text in (row["query"], f"{row['reasoning']}{ANSWER_PROMPT} {row['answer']}"))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fresh_model(tokenizer):
    """The generator with random weights."""
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=GENERATOR_LAYERS,
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def expand(model, num_layers):
    """The same function with more layers: those added on top write nothing into the residual stream at first."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = num_layers
    larger = LlamaForCausalLM(config)
    larger.load_state_dict(model.state_dict(), strict=False)
    for layer in larger.model.layers[model.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return larger


def training_rows(tokenizer, curriculum, seed, factor):
    """Tokenized rows in the curriculum's order, a batch after the other."""
    rows = []
    for stage, (steps, fewest, most, direct) in enumerate(curriculum):
        count = int(steps * factor) * BATCH_SIZE
        distinct = min(count, 8_000 if most <= 3 else 60_000)
        pool = coin_flip.generate(distinct, seed=seed + stage, min_people=fewest, max_people=most)
        generator = torch.Generator().manual_seed(seed + stage)
        picks = torch.randint(len(pool), (count,), generator=generator).tolist()
        at_once = (torch.rand(count, generator=generator) < direct).tolist()
        for index, answers_at_once in zip(picks, at_once, strict=True):
            row = pool[index]
            prompt = prompt_text(tokenizer, row["query"])
            completion = f"{ANSWER_PROMPT} {row['answer']}{tokenizer.eos_token}"
            rows.append((prompt, completion if answers_at_once else row["reasoning"] + completion))
    prompts, completions = (
        tokenizer(list(part), add_special_tokens=False)["input_ids"] for part in zip(*rows, strict=True)
    )
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in zip(prompts, completions, strict=True)],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, completions, strict=True)],
        }
    )


def judge(model, tokenizer, count):
    """Accuracy on held-out questions: explicit reasoning, and the answer at once."""
    rows = coin_flip.generate(count, seed=1, split="test")
    figures = {}
    for method in ("cot", "no_cot"):
        answers = answer_questions(
            model, tokenizer, [row["query"] for row in rows], method=method, batch_size=100, max_new_tokens=128
        )
        right = sum(
            check_answer(answer.output, row["answer"], "yes_no") for answer, row in zip(answers, rows, strict=True)
        )
        figures[method] = {"accuracy": right / count, "ci95": accuracy_interval(right, count), "n": count}
    return figures


def main():
    """Train, judge and save one of the two models."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    began = time.monotonic()
    set_seed(arguments.seed)
    if arguments.model == "host":
        tokenizer = AutoTokenizer.from_pretrained(arguments.generator)
        model = expand(LlamaForCausalLM.from_pretrained(arguments.generator), HOST_LAYERS)
    else:
        tokenizer = train_tokenizer()
        model = fresh_model(tokenizer)
    rows = training_rows(tokenizer, CURRICULA[arguments.model], arguments.seed, arguments.steps_factor)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            arguments.output_dir + "-training",
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=1,
            learning_rate=LEARNING_RATES[arguments.model],
            lr_scheduler_type="linear",
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="sequential",
            use_cpu=True,
            seed=arguments.seed,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.train()
    trained = time.monotonic()
    model.eval()
    # Training switched the cache off; whoever loads the model wants it on.
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    figures = judge(model, tokenizer, arguments.eval_samples)
    figures.update(
        model=arguments.model,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        training_seconds=round(trained - began),
        threads=torch.get_num_threads(),
        seed=arguments.seed,
    )
    Path(arguments.output_dir, "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
