"""Rows and batches of stage 2: prompts on the left, answers on the right, each token's reasoning steps beside them."""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import IterableDataset
from transformers.utils import logging

from ..data.schema import to_row
from ..data.splits import normalise_question
from ..inference.prompting import encode_prompt, prompt_text
from ..modeling.implicit_tokens_semcot import generator_text
from ..modeling.splicing_semcot import context_of

logger = logging.get_logger(__name__)

COLUMNS = ("query", "reasoning", "answer", "steps", "prompt", "completion")


@dataclass(frozen=True)
class RowSettings:
    """What decides a row's token ids, and which rows are too long.

    Args:
        answer_prompt_size: tokens of the answer prompt.
        num_implicit_tokens, steps_per_token: k, and the reasoning steps that each token must tell.
        max_length: most tokens of prompt, implicit tokens and answer; `None` for no limit.
        needs_reasoning: the objectives (names of config fields) that need a row's reasoning.
        teacher: whether the explicit chain of thought must fit too.
        words: whether rows carry the reasoning's words for each stage of the curriculum.
        generator_context: most tokens of query and implicit tokens in the generator; `None` for no limit.
        tokenizers: of host and generator, where the generator reads queries in its own ids.
        step_context: most tokens of an implicit token and its steps in the step decoder; `None` for no limit.
    """

    answer_prompt_size: int
    num_implicit_tokens: int
    steps_per_token: int = 1
    max_length: int | None = None
    needs_reasoning: tuple[str, ...] = ()
    teacher: bool = False
    words: bool = False
    generator_context: int | None = None
    tokenizers: tuple | None = None
    step_context: int | None = None


def row_settings(model, args):
    """The `RowSettings` of a SemCoT model, prepared for training, and its `SemCoTDistillationConfig`."""
    config = model.config
    limits = (args.max_length, context_of(config.get_text_config()))
    objectives = ("alpha", "step_weight", "kl_weight", "hidden_weight", "curriculum")
    if args.curriculum > 0 and config.num_implicit_tokens < 2:
        raise ValueError(
            f"curriculum={args.curriculum} needs 2 implicit tokens or more (the words of the first are never shown): "
            f"num_implicit_tokens is {config.num_implicit_tokens}. Set curriculum=0."
        )
    return RowSettings(
        answer_prompt_size=len(config.answer_prompt_ids),
        num_implicit_tokens=config.num_implicit_tokens,
        steps_per_token=args.steps_per_token,
        max_length=min((limit for limit in limits if limit is not None), default=None),
        needs_reasoning=tuple(name for name in objectives if getattr(args, name) > 0),
        teacher=args.kl_weight > 0 or args.hidden_weight > 0,
        words=args.curriculum > 0,
        generator_context=context_of(config.generator_config.get_text_config()),
        tokenizers=(model.host_tokenizer, model.generator_tokenizer) if config.separate_generator_tokenizer else None,
        step_context=context_of(config.step_decoder_config.get_text_config()) if args.step_weight > 0 else None,
    )


def schema_row(example, name):
    """The row in the dataset schema, from the paper's columns or TRL's prompt and completion.

    Raises:
        ValueError: for missing columns.
    """
    columns = {column: column for column in COLUMNS if column in example}
    if not ({"query", "prompt"} & set(columns) and {"answer", "completion"} & set(columns)):
        raise ValueError(
            f"{name} has the columns {sorted(example)}: needs query and answer (with reasoning and steps), or TRL's "
            "prompt and completion. Rename them, or load the dataset with load_reasoning_dataset(columns=...)."
        )
    prompt = example.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1:
        logger.warning_once(
            f"{name}: of a conversation the last user's message is the query; system messages and earlier turns are "
            "left out."
        )
    return to_row(example, columns)


def tokenize_dataset(dataset, name, tokenizer, settings, num_proc=None):
    """The dataset as token ids (`tokenize_row`), with each row's `length` and `reasoning`.

    Args:
        dataset: `Dataset`, or `IterableDataset`, which is tokenized as it is read.
        name: what errors call it.
        tokenizer: its chat template ends a prompt on the answer prompt.

    Raises:
        ValueError: for missing or empty datasets and columns, rows without what the objectives need, or rows beyond
            the limit: nothing is ever cut.
    """
    if dataset is None:
        raise ValueError(f"{name} is required: pass a Dataset of query, reasoning and answer.")
    if isinstance(dataset, dict):
        raise ValueError(f"{name} holds the splits {', '.join(dataset)}: pass one of them, such as dataset['train'].")
    streaming = isinstance(dataset, IterableDataset)
    columns = column_names(dataset)
    if not columns or not streaming and len(dataset) == 0:
        raise ValueError(f"{name} is empty: pass at least one row.")
    options = {} if streaming else {"num_proc": num_proc, "desc": f"Tokenizing {name}"}
    return dataset.map(
        _checked_row,
        fn_kwargs={"name": name, "tokenizer": tokenizer, "settings": settings},
        remove_columns=columns,
        **options,
    )


def column_names(dataset):
    """The columns of a dataset; where a stream does not tell them, those of its first row, if it has one."""
    return dataset.column_names or list(next(iter(dataset), {}))


def in_one_shard(dataset):
    """A stream of several shards as one of one shard; any other dataset as it is.

    Of several shards, processes read some each, and those with fewer batches leave the others waiting in evaluation;
    of one, all of them read equally many.
    """
    if isinstance(dataset, IterableDataset) and dataset.num_shards > 1:
        return IterableDataset.from_generator(_rows, gen_kwargs={"dataset": dataset})
    return dataset


def _rows(dataset):
    yield from dataset


def _checked_row(example, name, tokenizer, settings):
    row = schema_row(example, name)
    if not row["query"] or not row["answer"]:
        raise ValueError(f"{name} has a row without query or answer: {str(example)[:120]}. Drop or complete it.")
    if settings.needs_reasoning and not row["reasoning"]:
        raise ValueError(
            f"{name} has a row without reasoning, which {', '.join(settings.needs_reasoning)} > 0 need: "
            f"{str(example)[:120]}. Drop or complete it, or set them to 0."
        )
    ids = tokenize_row(row, tokenizer, settings)
    check_lengths(ids, settings, name, row["query"])
    length = len(ids["prompt_ids"]) + len(ids["completion_ids"])
    return {**ids, "length": length, "reasoning": row["reasoning"]}


def warn_of_overlap(train_dataset, eval_dataset, name):
    """Warn of evaluation questions that stand in the training set, with their number; streams are not read for it."""
    if isinstance(train_dataset, IterableDataset) or isinstance(eval_dataset, IterableDataset):
        return
    known = {normalise_question(schema_row(row, "train_dataset")["query"]) for row in train_dataset}
    shared = sum(normalise_question(schema_row(row, name)["query"]) in known for row in eval_dataset)
    if shared:
        logger.warning(
            f"{name}: {shared} of {len(eval_dataset)} questions stand in train_dataset too: its metrics are too high."
        )


def tokenize_row(row, tokenizer, settings):
    """Token ids of one row in the dataset schema.

    Args:
        row: query, answer, reasoning, steps.
        tokenizer: its chat template ends a prompt on the answer prompt (`prompts.with_answer_prompt`).

    Returns:
        dict of `prompt_ids`; `completion_ids`, the answer with end of sequence; `step_ids`, a list of ids for each
        implicit token; `word_ids`, the words that are left when the first 1, 2, ... k - 1 tokens have taken theirs, if
        the curriculum wants them; `teacher_ids`, the explicit chain of thought in place of the implicit tokens.
    """
    text = prompt_text(tokenizer, row["query"])
    prompt = encode_prompt(tokenizer, text)
    cut = len(prompt) - settings.answer_prompt_size
    end = [tokenizer.eos_token_id]
    groups = group_steps(row["steps"], settings.num_implicit_tokens, settings.steps_per_token)
    left = [" ".join(filter(None, groups[stage:])) for stage in range(1, len(groups))] if settings.words else []
    return {
        "prompt_ids": prompt,
        "completion_ids": _continuation(tokenizer, text, prompt, " " + row["answer"]) + end,
        "step_ids": [tokenizer(step, add_special_tokens=False)["input_ids"] + end if step else [] for step in groups],
        "word_ids": [tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in left],
        "teacher_ids": prompt[:cut]
        + tokenizer(row["reasoning"], add_special_tokens=False)["input_ids"]
        + prompt[cut:],
    }


def group_steps(steps, num_implicit_tokens, steps_per_token=1):
    """The text that each implicit token must tell; surplus steps join the last token (SIM-CoT, section 3).

    >>> group_steps(["a", "b", "c"], 2)
    ['a', 'b c']
    >>> group_steps(["a", "b", "c"], 4, steps_per_token=2)
    ['a b', 'c', '', '']
    """
    texts = []
    for index in range(num_implicit_tokens):
        start = index * steps_per_token
        last = index == num_implicit_tokens - 1
        texts.append(" ".join(steps[start:] if last else steps[start : start + steps_per_token]))
    return texts


def _continuation(tokenizer, text, prompt, addition):
    """Ids of `addition` behind the prompt, tokenized together with it where that leaves the prompt's ids alone."""
    joint = encode_prompt(tokenizer, text + addition)
    if joint[: len(prompt)] == prompt:
        return joint[len(prompt) :]
    return tokenizer(addition, add_special_tokens=False)["input_ids"]


@dataclass
class DistillationCollator:
    """Pads rows of `tokenize_row` to a batch.

    `input_ids` (batch, prompt + answer) is padded on the left before the prompts and on the right behind the answers,
    so that all answers start in one column; `teacher_ids` likewise. `step_input_ids` is (batch, k, longest step),
    `word_input_ids` (batch, k - 1, most words).

    Args:
        pad_token_id: the filler.
        with_steps, with_teacher, with_words: whether to make those tensors.
    """

    pad_token_id: int
    with_steps: bool = False
    with_teacher: bool = False
    with_words: bool = False

    def __call__(self, rows):
        completions = [row["completion_ids"] for row in rows]
        batch = self._sequences([row["prompt_ids"] for row in rows], completions)
        batch["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        if self.with_teacher:
            teacher = self._sequences([row["teacher_ids"] for row in rows], completions)
            batch["teacher_input_ids"] = teacher["input_ids"]
            batch["teacher_attention_mask"] = teacher["attention_mask"]
        for name, wanted in (("step", self.with_steps), ("word", self.with_words)):
            if wanted:
                batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"] = self._parts(
                    [row[f"{name}_ids"] for row in rows]
                )
        if "reasoning_embedding" in rows[0]:
            batch["reasoning_embedding"] = torch.tensor(
                np.asarray([row["reasoning_embedding"] for row in rows]), dtype=torch.float32
            )
        return batch

    def _parts(self, rows):
        """Ids and mask (batch, parts, longest part), padded on the right, of rows with equally many parts."""
        width = max(1, max(len(part) for parts in rows for part in parts))
        ids = [[_right(part, width, self.pad_token_id) for part in parts] for parts in rows]
        mask = [[_right([1] * len(part), width, 0) for part in parts] for parts in rows]
        return torch.tensor(ids), torch.tensor(mask)

    def _sequences(self, prompts, completions):
        left, right = max(map(len, prompts)), max(map(len, completions))
        ids, mask, completion = [], [], []
        for prompt, answer in zip(prompts, completions, strict=True):
            gap = left - len(prompt)
            ids.append([self.pad_token_id] * gap + prompt + _right(answer, right, self.pad_token_id))
            mask.append([0] * gap + [1] * len(prompt) + _right([1] * len(answer), right, 0))
            completion.append([0] * left + _right([1] * len(answer), right, 0))
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "completion_mask": torch.tensor(completion),
        }


def _right(values, width, filler):
    return values + [filler] * (width - len(values))


def check_lengths(ids, settings, name, query):
    """Check that each model can read its part of a row whole: nothing is ever cut.

    Args:
        ids: what `tokenize_row` makes; settings: `RowSettings`.
        name: what the error calls the data set; query: by which it tells the row.

    Raises:
        ValueError: for a part that is longer than its limit.
    """
    count, prompt, answer = settings.num_implicit_tokens, len(ids["prompt_ids"]), len(ids["completion_ids"])
    host = (settings.max_length, "max_length={}", "raise max_length")
    checks = [(f"prompt, {count} implicit tokens and answer", prompt + count + answer, *host)]
    if settings.teacher:
        checks.append(("prompt, reasoning and answer", len(ids["teacher_ids"]) + answer, *host))
    if settings.words:
        words = max(map(len, ids["word_ids"]))
        parts = f"prompt, {count} implicit tokens, words of the curriculum and answer"
        checks.append((parts, prompt + count + words + answer, *host))
    if settings.generator_context is not None:
        size = _query_size(ids["prompt_ids"], settings) + count
        limit = (settings.generator_context, "the generator's context of {}", "take another generator")
        checks.append((f"query and {count} implicit tokens", size, *limit))
    if settings.step_context is not None:
        # One position is the implicit token's, and the last token is told, not read.
        size = max(map(len, ids["step_ids"]), default=0)
        limit = (settings.step_context, "the step decoder's context of {}", "take another step_decoder")
        checks.append(("an implicit token and the steps that it must tell", size, *limit))
    for parts, length, limit, limit_name, remedy in checks:
        if limit is not None and length > limit:
            raise ValueError(
                f"{name} has a row of {length} tokens ({parts}), beyond {limit_name.format(limit)}, where it would be "
                f"cut: drop long rows or {remedy}. Its query starts {query[:80]!r}."
            )


def _query_size(prompt, settings):
    """Tokens that the generator reads of a prompt, in its own ids."""
    query = prompt[: len(prompt) - settings.answer_prompt_size]
    if settings.tokenizers is None:
        return len(query)
    text = generator_text(query, *settings.tokenizers)
    return len(settings.tokenizers[1](text, add_special_tokens=False)["input_ids"])
