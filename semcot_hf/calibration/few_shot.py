"""`compare_few_shot`: answers after several numbers of worked examples, and the best of these for a checkpoint."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.settings import thinks_in_words, with_overrides
from ..inference.templates import change_few_shot, check_shown, few_shot_messages
from ..options import option
from ..storage import text_digest
from .variants import Change, VariantConfig, compare_variants, write_variant


@dataclass
class FewShotConfig(VariantConfig):
    """The numbers of worked examples that are compared, and how."""

    few_shot_examples: list[int] = option(
        [0, 4], "Numbers of worked examples before a question to try; the model's own are always tried."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.few_shot_examples
        if isinstance(numbers, int) or not numbers or any(number < 0 for number in numbers):
            raise ValueError(f"few_shot_examples={numbers!r}: give a list of one or more numbers from 0 on.")


@dataclass(frozen=True)
class FewShotResult:
    """What a model is worth after some worked examples.

    Args:
        examples: rows with `query`, `words` and `answer`, as `change_few_shot` takes them.
        own: whether they are the model's own.
        semcot: row of the report of `evaluate`, with `accuracy` and `ci95`; fractions.
        difference: to the model's own examples, as `compare_runs` gives it; `None` for these.
    """

    examples: list[dict[str, str]]
    own: bool
    semcot: dict[str, Any]
    difference: dict[str, Any] | None


@dataclass(frozen=True)
class FewShotComparison:
    """Results for each set of examples, the best first, and the report's row of the generator alone, without any."""

    results: list[FewShotResult]
    generator: dict[str, Any]


def compare_few_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    examples: Sequence[Mapping[str, str]],
    config: FewShotConfig | None = None,
    *,
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> FewShotComparison:
    """Answer questions with implicit tokens after each number of worked examples, and by the generator alone.

    The model is as before afterwards; `write_few_shot` puts examples into a checkpoint.

    Args:
        model: a SemCoT model whose tokens are words.
        tokenizer: its tokenizer.
        dataset: rows with `query` and `answer` that the model was not trained on, and that its accuracy is not
            reported on.
        examples: rows with `query`, `words` and `answer`, of which the first ones are shown.
        config: see `FewShotConfig`.
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `few_shot_examples`.

    Returns:
        One result for each number and for the model's own examples, the best first: by right answers; among equals
        the model's own, then in the order given.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for a model without words, too few examples, examples that are among the questions, or as
            `change_few_shot`; no question is answered then.
    """
    config = with_overrides(config, overrides) if config else FewShotConfig(**overrides)
    if not thinks_in_words(model):
        raise ValueError(
            f"a model of type {model.config.model_type!r} without words has no thoughts that examples could show: "
            "pass a SemCoT checkpoint of the recipe 'words'."
        )
    if len(examples) < max(config.few_shot_examples):
        raise ValueError(
            f"few_shot_examples={config.few_shot_examples}: there are only {len(examples)} examples. Lower the number."
        )
    own = [
        {"query": asked["content"], "words": answered["words"], "answer": answered["answer"]}
        for asked, answered in zip(*[iter(few_shot_messages(tokenizer))] * 2, strict=True)
    ]
    given = [{name: _text(row.get(name)) for name in ("query", "words", "answer")} for row in examples]
    dataset = list(dataset)
    read = [*own, *given[: max(config.few_shot_examples)]]
    check_shown((row["query"] for row in read), (row["query"] for row in dataset))
    known = [own, *(given[:number] for number in config.few_shot_examples)]
    shown = {f"{len(rows)} worked examples ({text_digest([json.dumps(rows)])[:16]})": rows for rows in known}
    changes: dict[str, Change] = {name: partial(change_few_shot, examples=rows) for name, rows in shown.items()}
    further = {next(iter(changes)): ["generator"]}
    compared = compare_variants(model, tokenizer, dataset, changes, config, further=further, progress=progress)
    found = [
        FewShotResult(shown[name], shown[name] == own, one.rows["semcot"], one.difference)
        for name, one in compared.items()
    ]
    generator = next(iter(compared.values())).rows["generator"]
    return FewShotComparison(sorted(found, key=lambda result: -result.semcot["accuracy"]), generator)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def write_few_shot(
    folder: str | Path, examples: Sequence[Mapping[str, str]], *, trust_remote_code: bool = False
) -> None:
    """Change the worked examples of a checkpoint in place; see `write_variant` and `change_few_shot`.

    Args:
        folder: the checkpoint.
        examples: rows with `query`, `words` and `answer`; none removes them.
        trust_remote_code: whether code of the tokenizer's own is run.

    Raises:
        ValueError: as these; nothing is changed then.
    """
    write_variant(folder, partial(change_few_shot, examples=examples), trust_remote_code=trust_remote_code)
