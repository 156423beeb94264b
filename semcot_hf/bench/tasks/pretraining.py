"""Hosts and generators made from nothing for a task: tiny Llamas that reason in words.

First words, then answers. The generator learns to reason, from few steps to many. The host is the generator with more
layers, which begin as the identity (block expansion, arXiv 2401.02415), and learns to answer at once beside
reasoning; answers at once mixed in from the start would keep a model of this size from learning to reason.
"""

import copy
import json
import os
import shutil
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ...answers import check_answer
from ...evaluation import accuracy_interval, answer_questions
from ...inference.prompting import ANSWER_PROMPT, prompt_text
from ...progress import Update, progress_bar
from ...training.checkpoints import last_complete_checkpoint
from .definitions import BenchTask
from .earlier_tokens import EarlierTokens

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '<|user|>' + message.content + '<|end|>' }}"
    "{%- elif message.role == 'assistant' %}{{ '<|assistant|>' + message.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)
HOST_RATE = 5e-4
BATCH_SIZE = 64
WINDOW_BATCHES = 8
LOG_STEPS = 50
SAVE_STEPS = 200
DISTINCT_QUESTIONS = 60_000
TOKENIZER_QUESTIONS = 4_000


def make_models(
    task: BenchTask, folder, *, host_layers=None, seed=0, steps_factor=1.0, eval_samples=1000, device="cpu"
):
    """Make `folder/generator` and `folder/host`, whichever is missing; returns the two paths.

    Each model's accuracy and the time that its training took lie beside it in `figures.json`. A training that was
    cut off goes on from its last checkpoint, at most 200 steps back, when it is asked for again with the same seed
    and steps; standard error says how far it has come.

    Args:
        task: what is learned.
        folder: of both models.
        host_layers: the host's layers, at least the generator's; the task's own when `None`.
        seed: of weights, questions and order.
        steps_factor: multiplies all numbers of steps (for a quick try).
        eval_samples: held-out questions judged at the end.
        device: where it runs.

    Raises:
        ValueError: for a host of fewer layers than its generator.
    """
    if host_layers is not None:
        if host_layers < task.generator_shape[0]:
            raise ValueError(
                f"host_layers={host_layers}: a host grows from its generator; pass at least its layers, "
                f"{task.generator_shape[0]}."
            )
        task = replace(task, host_layers=host_layers)
    paths = {name: Path(folder) / name for name in ("generator", "host")}
    for name, path in paths.items():
        if not path.exists():
            options = {"seed": seed, "steps_factor": steps_factor, "eval_samples": eval_samples, "device": device}
            if name == "generator":
                # A host that was begun grew from another one.
                for begun in path.parent.glob("host.training-*"):
                    shutil.rmtree(begun)
            unfinished = path.with_name(name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make_model(task, name, unfinished, generator=paths["generator"], **options)
            os.replace(unfinished, path)
    return paths["host"], paths["generator"]


def make_model(task, name, folder, *, generator, seed=0, steps_factor=1.0, eval_samples=1000, device="cpu"):
    """Train, judge and save the "generator" or the "host", which grows from the finished `generator`."""
    began = time.monotonic()
    set_seed(seed)
    if name == "host":
        tokenizer = AutoTokenizer.from_pretrained(generator)
        model = expand(LlamaForCausalLM.from_pretrained(generator), task.host_layers)
        lessons = ((task.host_rows or task.generate, task.host_steps),)
    else:
        tokenizer = train_tokenizer(task)
        model, lessons = fresh_model(tokenizer, *task.generator_shape), task.lessons
    direct = task.direct_share if name == "host" else 0.0
    # Never for a host: in batches of one length, so of one kind, answers at once and bare words would weigh as much as
    # whole reasoning, which the equations' host then unlearns.
    by_length = task.by_length and name == "generator"
    callbacks = []
    if task.earlier_tokens and name == "generator":
        callbacks.append(EarlierTokens(task.earlier_tokens, seed))
    of = f"-{task.host_layers}layers" if name == "host" else ""
    training = Path(folder).with_name(f"{name}.training-seed{seed}-x{steps_factor:g}{of}")
    checkpoint = last_complete_checkpoint(str(training)) if any(training.glob("checkpoint-*")) else None
    rows = training_rows(tokenizer, lessons, direct, seed, steps_factor, by_length)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(training),
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=1,
            learning_rate=HOST_RATE if name == "host" else task.generator_rate,
            lr_scheduler_type="linear",
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            logging_steps=LOG_STEPS,
            save_steps=SAVE_STEPS,
            save_total_limit=1,
            report_to="none",
            train_sampling_strategy="sequential",
            disable_tqdm=True,
            use_cpu=device == "cpu",
            seed=seed,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    with progress_bar(name, len(rows) // BATCH_SIZE, resumed_at, lines=True) as advance:
        trainer.add_callback(_Progress(advance, resumed_at))
        trainer.train(resume_from_checkpoint=checkpoint)
    trained = time.monotonic()
    model.eval()
    # Training switched the cache off; whoever loads the model wants it on.
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    figures = {
        **measure_accuracy(model, tokenizer, task, eval_samples),
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": round(trained - began),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    if checkpoint:
        # The seconds are those since then.
        figures["resumed_at_step"] = resumed_at
    Path(folder, "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    shutil.rmtree(training)
    return figures


class _Progress(TrainerCallback):
    """Report steps and loss at every log."""

    def __init__(self, advance: Update, step: int):
        self.advance, self.step = advance, step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            text = f"step {state.global_step} of {state.max_steps}, loss {logs['loss']:.3f}"
            self.advance(state.global_step - self.step, text)
            self.step = state.global_step


def train_tokenizer(task):
    """Byte-level BPE on the task's own text, so that names and words are single tokens, and numbers or digits."""
    tokenizer = Tokenizer(models.BPE())
    bytes_of_text = pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [] if task.whole_numbers else [pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytes_of_text])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=task.vocabulary,
        special_tokens=["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rows = task.generate(TOKENIZER_QUESTIONS, 7, "train")
    texts = (
        text
        for row in rows
        for text in (row["query"], row.get("words", ""), f"{row['reasoning']}{ANSWER_PROMPT} {row['answer']}")
    )
    numbers = (f" {number}" for number in range(task.whole_numbers))
    tokenizer.train_from_iterator(chain(texts, numbers), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fresh_model(tokenizer, num_layers, hidden_size):
    """A Llama with random weights and 4 heads."""
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 8 * 8,
        num_hidden_layers=num_layers,
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


def training_rows(tokenizer, lessons, direct_share, seed, factor=1.0, by_length=False):
    """Tokenized rows in the lessons' order, a batch after the other; reasoning that is `given` is not learned.

    With `by_length` the rows of a batch are bucketed by length.
    """
    rows = []
    for stage, (generate, steps) in enumerate(lessons):
        count = max(1, int(steps * factor)) * BATCH_SIZE
        pool = _as_many(generate, min(count, DISTINCT_QUESTIONS), seed + stage)
        generator = torch.Generator().manual_seed(seed + stage)
        picks = torch.randint(len(pool), (count,), generator=generator).tolist()
        at_once = (torch.rand(count, generator=generator) < direct_share).tolist()
        pairs = []
        for index, answers_at_once in zip(picks, at_once, strict=True):
            row = pool[index]
            reasoning = "" if answers_at_once else row["reasoning"]
            completion = f"{ANSWER_PROMPT} {row['answer']}{tokenizer.eos_token}"
            parts = (reasoning, completion) if row.get("given") else ("", reasoning + completion)
            pairs.append((prompt_text(tokenizer, row["query"]) + parts[0], parts[1]))
        prompts, completions = (
            tokenizer(list(part), add_special_tokens=False)["input_ids"] for part in zip(*pairs, strict=True)
        )
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, completions, strict=True)]
        order = bucket_by_length(lengths, generator) if by_length else range(count)
        rows += [(prompts[index], completions[index]) for index in order]
    return Dataset.from_dict(
        {
            "input_ids": [prompt + answer for prompt, answer in rows],
            "labels": [[-100] * len(prompt) + answer for prompt, answer in rows],
        }
    )


def bucket_by_length(lengths, generator):
    """Indices in an order whose batches hold rows of about one length, so that little is padding.

    Rows are sorted within windows of a few batches, and each window's batches are shuffled.
    """
    order = []
    for start in range(0, len(lengths), WINDOW_BATCHES * BATCH_SIZE):
        window = sorted(range(start, min(start + WINDOW_BATCHES * BATCH_SIZE, len(lengths))), key=lengths.__getitem__)
        batches = [window[first : first + BATCH_SIZE] for first in range(0, len(window), BATCH_SIZE)]
        order += chain.from_iterable(
            batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()
        )
    return order


def _as_many(generate, count, seed):
    """`count` different questions, or half as many again and again where an easy lesson does not have them."""
    while True:
        try:
            return generate(count, seed, "train")
        except ValueError:
            if count == 1:
                raise
            count //= 2


def measure_accuracy(model, tokenizer, task, count):
    """Accuracy on `count` held-out questions: explicit reasoning, and the answer at once."""
    rows = task.generate(count, 1, "test")
    figures = {}
    for method in ("cot", "no_cot"):
        answers = answer_questions(
            model,
            tokenizer,
            [row["query"] for row in rows],
            method=method,
            batch_size=100,
            max_new_tokens=task.max_new_tokens,
        )
        right = sum(
            check_answer(answer.output, row["answer"], task.answer_type)
            for answer, row in zip(answers, rows, strict=True)
        )
        figures[method] = {"accuracy": right / count, "ci95": accuracy_interval(right, count), "n": count}
    return figures
