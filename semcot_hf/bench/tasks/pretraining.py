"""Pretraining of a task's generator and host from scratch: tiny Llamas that reason in words.

The generator learns to reason, from few steps to many. The host is the generator with more layers, which start as the
identity (block expansion, arXiv 2401.02415), and learns to answer at once beside reasoning. Answers at once from the
start would keep a model of this size from learning to reason.
"""

import copy
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ...answers import check_answer
from ...evaluation import accuracy_interval, answer_questions
from ...inference.prompting import ANSWER_PROMPT, prompt_text
from ...progress import Update, progress_bar
from ...storage import write_json
from ...training.checkpoints import last_complete_checkpoint
from .definitions import BenchTask
from .rows import Generate

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '<|user|>' + message.content + '<|end|>' }}"
    "{%- elif message.role == 'assistant' %}{{ '<|assistant|>' + message.content + '<|end|>' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)
BATCH_SIZE = 64
WINDOW_BATCHES = 8
LOG_STEPS = 50
SAVE_STEPS = 200
DISTINCT_QUESTIONS = 60_000
TOKENIZER_QUESTIONS = 4_000


def make_models(
    task: BenchTask,
    folder: str | Path,
    *,
    host_layers: int | None = None,
    seed: int = 0,
    steps_factor: float = 1.0,
    eval_samples: int = 1000,
    device: str = "cpu",
    aids: Sequence[TrainerCallback] = (),
) -> tuple[Path, Path]:
    """Make `folder/generator` and `folder/host`, whichever is missing, and return the paths of host and generator.

    Each model's folder holds its accuracy and training time in `figures.json`. An interrupted training continues from
    its last checkpoint, at most 200 steps back, when it is repeated with the same seed and steps. Progress goes to
    standard error.

    Args:
        task: what is learned.
        folder: of both models.
        host_layers: layers of the host, at least those of the generator; the task's when `None`.
        seed: of weights, questions and order.
        steps_factor: factor on all numbers of steps (for a quick try).
        eval_samples: number of held-out questions on which accuracy is measured.
        device: "cpu" or "cuda".
        aids: callbacks of the generator's training.

    Raises:
        ValueError: for a host with fewer layers than its generator.
    """
    if host_layers is not None:
        if host_layers < task.generator_shape[0]:
            raise ValueError(
                f"host_layers={host_layers}: a host is expanded from its generator; pass at least its layers, "
                f"{task.generator_shape[0]}."
            )
        task = replace(task, host_layers=host_layers)
    host, generator = Path(folder, "host"), Path(folder, "generator")
    for path in (generator, host):
        if not path.exists():
            if path is generator:
                # A started training of a host began with another generator.
                for started in path.parent.glob("host.training-*"):
                    shutil.rmtree(started)
            unfinished = path.with_name(path.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            made = (seed, steps_factor, eval_samples, device, aids if path is generator else ())
            make_model(task, path.name, unfinished, generator, *made)
            os.replace(unfinished, path)
    return host, generator


def make_model(
    task: BenchTask,
    name: str,
    folder: Path,
    generator: Path,
    seed: int,
    steps_factor: float,
    eval_samples: int,
    device: str,
    aids: Sequence[TrainerCallback],
) -> None:
    """Train, evaluate and save the "generator", or the "host", which is expanded from the finished `generator`."""
    start = time.monotonic()
    set_seed(seed)
    training = f"{name}.training-seed{seed}-x{steps_factor:g}"
    tokenizer: PreTrainedTokenizerBase
    if name == "host":
        tokenizer = AutoTokenizer.from_pretrained(generator)
        model = expand(LlamaForCausalLM.from_pretrained(generator), task.host_layers)
        lessons: Sequence = task.lessons_of_host()
        training += f"-{task.host_layers}layers"
        # Never by length: a batch of one length holds one kind of rows, so that answers at once weigh as much as whole
        # reasoning, which the host of the equations then unlearns.
        direct, by_length, rate = task.direct_share, False, task.host_rate
    else:
        tokenizer = train_tokenizer(task)
        model, lessons = fresh_model(tokenizer, *task.generator_shape), task.lessons
        direct, by_length, rate = 0.0, task.by_length, task.generator_rate
    checkpoints = folder.with_name(training)
    checkpoint = last_complete_checkpoint(str(checkpoints)) if any(checkpoints.glob("checkpoint-*")) else None
    rows = training_rows(tokenizer, lessons, direct, seed, steps_factor, by_length)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(checkpoints),
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=1,
            learning_rate=rate,
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
        callbacks=list(aids),
    )
    trainer.remove_callback(PrinterCallback)
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    with progress_bar(name, len(rows) // BATCH_SIZE, resumed_at, lines=True) as advance:
        trainer.add_callback(_Progress(advance, resumed_at))
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = round(time.monotonic() - start)
    model.eval()
    # Training has switched the cache off.
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    figures = {
        **measure_accuracy(model, tokenizer, task, eval_samples, None if name == "host" else lessons[-1][0]),
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": seconds,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    if checkpoint:
        # The seconds count from there.
        figures["resumed_at_step"] = resumed_at
    write_json(folder / "figures.json", figures)
    shutil.rmtree(checkpoints)


class _Progress(TrainerCallback):
    """Report steps and loss at each log."""

    def __init__(self, advance: Update, step: int) -> None:
        self.advance, self.step = advance, step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            text = f"step {state.global_step} of {state.max_steps}, loss {kwargs['logs']['loss']:.3f}"
            self.advance(state.global_step - self.step, text)
            self.step = state.global_step


def train_tokenizer(task: BenchTask) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the task's text, so that names and words, and numbers or digits, are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    splits = [] if task.whole_numbers else [pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=task.vocabulary,
        special_tokens=["<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sources = dict.fromkeys((task.generate, task.lessons_of_host()[-1][0], task.lessons[-1][0]))
    rows = chain.from_iterable(source(TOKENIZER_QUESTIONS // len(sources), 7, "train") for source in sources)
    texts = (
        text
        for row in rows
        for text in (row["query"], row["condensed_reasoning"], f"{row['reasoning']}{ANSWER_PROMPT} {row['answer']}")
    )
    numbers = (f" {number}" for number in range(task.whole_numbers))
    tokenizer.train_from_iterator(chain(texts, numbers), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def fresh_model(tokenizer: PreTrainedTokenizerBase, num_layers: int, hidden_size: int) -> LlamaForCausalLM:
    """Return a Llama with random weights and 4 heads."""
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


def expand(model: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """Return the same function with more layers; the added ones write nothing into the residual stream at first."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = num_layers
    larger = LlamaForCausalLM(config)
    larger.load_state_dict(model.state_dict(), strict=False)
    for layer in larger.model.layers[model.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return larger


def training_rows(
    tokenizer: PreTrainedTokenizerBase,
    lessons: Sequence[tuple[Generate, int]],
    direct_share: float,
    seed: int,
    factor: float = 1.0,
    by_length: bool = False,
) -> Dataset:
    """Tokenize rows in the lessons' order, batch after batch.

    Args:
        tokenizer: of the model.
        lessons: functions of (number, seed, split), and their numbers of steps.
        direct_share: share of rows without reasoning.
        seed: of the questions and their order.
        factor: factor on the numbers of steps.
        by_length: whether batches hold rows of similar length (`bucket_by_length`).
    """
    rows = []
    for stage, (generate, steps) in enumerate(lessons):
        count = max(1, int(steps * factor)) * BATCH_SIZE
        pool = _as_many(generate, min(count, DISTINCT_QUESTIONS), seed + stage)
        generator = torch.Generator().manual_seed(seed + stage)
        picks = torch.randint(len(pool), (count,), generator=generator).tolist()
        direct = (torch.rand(count, generator=generator) < direct_share).tolist()
        pairs = []
        for row, is_direct in zip((pool[index] for index in picks), direct, strict=True):
            reasoning = "" if is_direct else row["reasoning"]
            completion = f"{reasoning}{ANSWER_PROMPT} {row['answer']}{tokenizer.eos_token}"
            pairs.append((prompt_text(tokenizer, row["query"]), completion))
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


def bucket_by_length(lengths: Sequence[int], generator: torch.Generator) -> list[int]:
    """Return indices in an order whose batches hold rows of similar length, for little padding.

    Rows are sorted within windows of a few batches, and each window's batches are shuffled.
    """
    order: list[int] = []
    for start in range(0, len(lengths), WINDOW_BATCHES * BATCH_SIZE):
        window = sorted(range(start, min(start + WINDOW_BATCHES * BATCH_SIZE, len(lengths))), key=lengths.__getitem__)
        batches = [window[first : first + BATCH_SIZE] for first in range(0, len(window), BATCH_SIZE)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            order += batches[index]
    return order


def _as_many(generate: Generate, count: int, seed: int) -> list[dict]:
    """Generate `count` distinct questions, or half of them, a quarter, ... where a lesson has fewer."""
    while True:
        try:
            return generate(count, seed, "train")
        except ValueError:
            if count == 1:
                raise
            count //= 2


def measure_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: BenchTask,
    count: int,
    generate: Generate | None = None,
) -> dict[str, dict]:
    """Measure accuracy on `count` held-out questions: with explicit reasoning, and at once.

    Args:
        generate: makes the questions; the task's own when `None`.
    """
    rows, figures = (generate or task.generate)(count, 1, "test"), {}
    for method in ("cot", "no_cot"):
        answers = answer_questions(
            model,
            tokenizer,
            [row["query"] for row in rows],
            method=method,
            batch_size=100,
            max_new_tokens=task.max_new_tokens,
        )
        checked = zip(answers, rows, strict=True)
        right = sum(check_answer(answer.output, row["answer"], task.answer_type) for answer, row in checked)
        figures[method] = {"accuracy": right / count, "ci95": accuracy_interval(right, count), "n": count}
    return figures
