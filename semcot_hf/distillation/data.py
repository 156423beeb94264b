"""Rows of stage 2: tokenized prompts, answers and reasoning steps, and the lengths that the models allow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.schema import to_row
from ..data.splits import normalise_question
from ..inference.prompting import encode_prompt, prompt_text, reasoning_before
from ..modeling.configuration_semcot import text_config
from ..modeling.few_shot_semcot import plain_ids
from ..modeling.modeling_semcot import SemCoTForCausalLM
from ..modeling.splicing_semcot import context_of
from ..modeling.vocabularies_semcot import generator_text
from ..training import dataset_checks
from .config import SemCoTDistillationConfig
from .words import WordSettings, check_words, tokenize_words, words_of

logger = logging.get_logger(__name__)

COLUMNS = ("query", "reasoning", "answer", "steps", "prompt", "completion")

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


@dataclass(frozen=True)
class RowSettings:
    """What the token ids of a row, and the limits of its length, depend on.

    Args:
        answer_prompt_size: tokens of the answer prompt.
        few_shot_ids: of the model's configuration: what only the host reads of a prompt.
        num_implicit_tokens, steps_per_token: k, and the reasoning steps that each token encodes.
        max_length: maximum tokens of prompt, implicit tokens and answer; `None` for no limit.
        needs_reasoning: the objectives (names of config fields) that need a row's reasoning.
        teacher: whether the explicit chain of thought must fit too.
        words: whether rows carry the words of the reasoning for each stage of the curriculum.
        generator_context: maximum tokens of query and implicit tokens in the generator; `None` for no limit.
        tokenizers: of host and generator, when the generator reads queries in its own ids.
        step_context: maximum tokens of an implicit token and its steps in the step decoder; `None` for no limit.
        thoughts: how the words of the words phase are tokenized; `None` without them.
        vocabularies: number of embeddings of the host, of the generator where it reads the same ids, and of the step
            decoder where there is one, by their name in errors.
    """

    answer_prompt_size: int
    num_implicit_tokens: int
    few_shot_ids: list[int] | None = None
    steps_per_token: int = 1
    max_length: int | None = None
    needs_reasoning: tuple[str, ...] = ()
    teacher: bool = False
    words: bool = False
    generator_context: int | None = None
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None
    step_context: int | None = None
    thoughts: WordSettings | None = None
    vocabularies: Mapping[str, int] = field(default_factory=dict)


def row_settings(
    model: SemCoTForCausalLM, args: SemCoTDistillationConfig, thoughts: WordSettings | None = None
) -> RowSettings:
    """Return the settings for a model that is prepared for training."""
    config = model.config
    limits = (args.max_length, context_of(config.get_text_config()))
    tokenizers = (model.host_tokenizer, model.generator_tokenizer)
    objectives = ("alpha", "step_weight", "kl_weight", "hidden_weight", "curriculum")
    if args.curriculum > 0 and config.num_implicit_tokens < 2:
        raise ValueError(
            f"curriculum={args.curriculum} needs 2 implicit tokens or more (the words of the first are never shown): "
            f"num_implicit_tokens is {config.num_implicit_tokens}. Set curriculum=0."
        )
    for name in ("step_weight", "curriculum"):
        if getattr(args, name) > 0 and config.thought_length == "adaptive":
            raise ValueError(
                f"{name}={getattr(args, name)}: steps are divided among a fixed number of implicit tokens, and this "
                f"model has thought_length='adaptive'. Set {name}=0; the words phase (words_max_steps) teaches such "
                "thoughts."
            )
    readers = {"host": config.host_config}
    if not config.separate_generator_tokenizer:
        readers["generator"] = config.generator_config
    if args.step_weight > 0:
        readers["step decoder"] = config.step_decoder_config
    return RowSettings(
        answer_prompt_size=len(config.answer_prompt_ids or ()),
        few_shot_ids=config.few_shot_ids,
        num_implicit_tokens=config.num_implicit_tokens,
        steps_per_token=args.steps_per_token,
        max_length=min((limit for limit in limits if limit is not None), default=None),
        needs_reasoning=tuple(name for name in objectives if getattr(args, name) > 0),
        teacher=args.kl_weight > 0 or args.hidden_weight > 0,
        words=args.curriculum > 0,
        thoughts=thoughts,
        generator_context=context_of(text_config(config.generator_config)),
        tokenizers=cast(Any, tokenizers) if config.separate_generator_tokenizer else None,
        step_context=context_of(text_config(config.step_decoder_config)) if args.step_weight > 0 else None,
        vocabularies={name: text_config(part).vocab_size for name, part in readers.items()},
    )


def schema_row(example: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a row in the dataset schema, from the paper's columns or TRL's prompt and completion.

    Args:
        name: the dataset's name in errors and warnings.

    Raises:
        ValueError: for missing columns.
    """
    columns = {column: column for column in COLUMNS if column in example}
    if not ({"query", "prompt"} & set(columns) and {"answer", "completion"} & set(columns)):
        raise ValueError(
            f"{name} has the columns {sorted(example)}: needs query and answer (with reasoning and steps), or TRL's "
            "prompt and completion. Rename them, or load the dataset with load_reasoning_dataset(columns=...)."
        )
    prompt = None if "query" in columns else example.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1:
        logger.warning_once(
            f"{name}: of a conversation the last user's message is the query; system messages and earlier turns are "
            "left out."
        )
    return to_row(example, columns)


def tokenize_dataset(
    dataset: AnyDataset | None,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: RowSettings,
    num_proc: int | None = None,
) -> AnyDataset:
    """Return the dataset as token ids (`tokenize_row`), with the `length` and `reasoning` of each row.

    Args:
        dataset: an `IterableDataset` is tokenized while it is read; only its first rows are checked for words.
        name: the dataset's name in errors.
        tokenizer: its chat template ends a prompt with the answer prompt.
        num_proc: processes that tokenize.

    Raises:
        ValueError: for missing or empty datasets and columns, rows without what the objectives need, or rows beyond
            a length limit: no row is truncated.
    """
    if dataset is None:
        raise ValueError(f"{name} is required: pass a Dataset of query, reasoning and answer.")
    dataset_checks.check_single_split(dataset, name)
    columns = dataset_checks.column_names(dataset)
    if not columns or isinstance(dataset, Dataset) and len(dataset) == 0:
        raise ValueError(f"{name} is empty: pass at least one row.")
    arguments = {"name": name, "tokenizer": tokenizer, "settings": settings}
    if isinstance(dataset, IterableDataset):
        tokenized = dataset.map(_checked_row, fn_kwargs=arguments, remove_columns=columns)
    else:
        tokenized = dataset.map(
            _checked_row, fn_kwargs=arguments, remove_columns=columns, num_proc=num_proc, desc=f"Tokenizing {name}"
        )
    if settings.thoughts is not None:
        check_words(tokenized, name, settings.thoughts, columns)
    return tokenized


def in_one_shard(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return a stream of several shards as one of a single shard; any other dataset unchanged.

    Processes divide several shards among themselves, and in evaluation one with fewer batches blocks the others. Of
    one shard, all processes read equally many rows.
    """
    if isinstance(dataset, IterableDataset) and dataset.num_shards > 1:
        return IterableDataset.from_generator(_rows, gen_kwargs={"dataset": dataset})
    return dataset


def _rows(dataset: IterableDataset) -> Iterator[dict[str, Any]]:
    yield from dataset


def _checked_row(
    example: Mapping[str, Any], name: str, tokenizer: PreTrainedTokenizerBase, settings: RowSettings
) -> dict[str, Any]:
    row = schema_row(example, name)
    if not row["query"] or not row["answer"]:
        raise ValueError(f"{name} has a row without query or answer: {str(example)[:120]}. Drop or complete it.")
    if settings.needs_reasoning and not row["reasoning"]:
        raise ValueError(
            f"{name} has a row without reasoning, which {', '.join(settings.needs_reasoning)} > 0 need: "
            f"{str(example)[:120]}. Drop or complete it, or set them to 0."
        )
    ids = tokenize_row(row, tokenizer, settings)
    if settings.thoughts is not None:
        words = words_of(example, row, settings.thoughts.column)
        ids |= tokenize_words(words, row["answer"], settings.thoughts)
    check_ids(ids, len(tokenizer), settings, name, row["query"])
    check_lengths(ids, settings, name, row["query"])
    length = len(ids["prompt_ids"]) + len(ids["completion_ids"])
    return {**ids, "length": length, "reasoning": row["reasoning"]}


def warn_of_overlap(train_dataset: Dataset, eval_dataset: Dataset, name: str) -> None:
    """Warn when evaluation questions are also in the training set; streams are not read for this."""
    if not (isinstance(train_dataset, IterableDataset) or isinstance(eval_dataset, IterableDataset)):
        train, evaluation = (
            [normalise_question(schema_row(row, label)["query"]) for row in dataset]
            for label, dataset in (("train_dataset", train_dataset), (name, eval_dataset))
        )
        dataset_checks.warn_of_overlap(train, evaluation, name, "questions")


def tokenize_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, settings: RowSettings) -> dict[str, Any]:
    """Return the token ids of a row.

    Args:
        row: query, answer, reasoning and steps.
        tokenizer: its chat template ends a prompt with the answer prompt (`prompting.with_answer_prompt`).

    Returns:
        dict of `prompt_ids`; `completion_ids`, the answer with end of sequence; `step_ids`, a list of ids for each
        implicit token; `word_ids`, for each stage 1 to k - 1 of the curriculum the words that remain; `teacher_ids`,
        the prompt without worked examples, with the explicit reasoning before its answer prompt.
    """

    def plain(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = prompt_text(tokenizer, row["query"])
    prompt, answer = encode_prompt(tokenizer, text), " " + row["answer"]
    joint = encode_prompt(tokenizer, text + answer)
    # The answer is tokenized together with the prompt if that leaves the prompt's ids unchanged.
    completion = joint[len(prompt) :] if joint[: len(prompt)] == prompt else plain(answer)
    cut = len(prompt) - settings.answer_prompt_size
    end = [tokenizer.eos_token_id]
    groups = group_steps(row["steps"], settings.num_implicit_tokens, settings.steps_per_token)
    left = [" ".join(filter(None, groups[stage:])) for stage in range(1, len(groups))] if settings.words else []
    answer_prompt = str(tokenizer.decode(prompt[cut:]))
    reasoning, *left = (reasoning_before(part, answer_prompt) for part in (row["reasoning"], *left))
    return {
        "prompt_ids": prompt,
        "completion_ids": completion + end,
        "step_ids": [plain(step) + end if step else [] for step in groups],
        "word_ids": [plain(words) if words else [] for words in left],
        "teacher_ids": plain_ids(prompt[:cut], settings.few_shot_ids) + plain(reasoning) + prompt[cut:],
    }


def group_steps(steps: Sequence[str], num_implicit_tokens: int, steps_per_token: int = 1) -> list[str]:
    """Return the text that each implicit token encodes; surplus steps join the last token (SIM-CoT, section 3).

    >>> group_steps(["a", "b", "c"], 2)
    ['a', 'b c']
    >>> group_steps(["a", "b", "c"], 4, steps_per_token=2)
    ['a b', 'c', '', '']
    """
    starts = [index * steps_per_token for index in range(num_implicit_tokens)]
    return [" ".join(steps[start:end]) for start, end in zip(starts, [*starts[1:], None], strict=False)]


def check_lengths(ids: Mapping[str, Any], settings: RowSettings, name: str, query: str) -> None:
    """Check that each model can read its part of a row without truncation.

    Args:
        ids: a result of `tokenize_row`.
        name, query: the dataset's name and the row's query in the error.

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
        size = _query_size(ids["prompt_ids"], settings) + max(count, len(ids.get("thought_ids", ())))
        limit = (settings.generator_context, "the generator's context of {}", "use another generator")
        checks.append((f"query and {count} implicit tokens", size, *limit))
    if settings.step_context is not None:
        # The implicit token takes one position; the last token of the steps is predicted, not read.
        size = max(map(len, ids["step_ids"]), default=0)
        limit = (settings.step_context, "the step decoder's context of {}", "use another step_decoder")
        checks.append(("an implicit token and its steps", size, *limit))
    for parts, length, most, limit_name, remedy in checks:
        if most is not None and length > most:
            raise ValueError(
                f"{name} has a row of {length} tokens ({parts}), beyond {limit_name.format(most)}: drop long rows or "
                f"{remedy}. Its query starts {query[:80]!r}."
            )


def check_ids(ids: Mapping[str, Any], tokens: int, settings: RowSettings, name: str, query: str) -> None:
    """Check that each model has embeddings for the ids that it reads, which added tokens of a tokenizer lack.

    Args:
        ids: a result of `tokenize_row`.
        tokens: number of tokens of the tokenizer.
        name, query: the dataset's name and the row's query in the error.

    Raises:
        ValueError: for an id beyond a model's vocabulary.
    """
    host = [ids["prompt_ids"], ids["completion_ids"], *ids["word_ids"], ids["teacher_ids"]]
    read = {"host": host, "generator": [ids["prompt_ids"]], "step decoder": ids["step_ids"]}
    for model, size in settings.vocabularies.items():
        largest = max((max(part) for part in read[model] if part), default=0)
        if largest >= size:
            raise ValueError(
                f"{name} has a row with the token id {largest}: the tokenizer has {tokens} tokens, but the {model}'s "
                f"vocabulary only {size}. Use the model's own tokenizer, or resize its embeddings "
                f"(resize_token_embeddings), save it and build the pair again. The row's query starts {query[:80]!r}."
            )


def _query_size(prompt: list[int], settings: RowSettings) -> int:
    """Return how many tokens of a prompt the generator reads, in its own ids."""
    query = plain_ids(prompt[: len(prompt) - settings.answer_prompt_size], settings.few_shot_ids)
    if settings.tokenizers is None:
        return len(query)
    text = generator_text(query, *settings.tokenizers)
    return len(settings.tokenizers[1](text, add_special_tokens=False)["input_ids"])
