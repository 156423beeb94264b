"""`compare_answer_prompts`: answers after several answer prompts, and the best of these for a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.settings import answer_prompt_of, with_overrides
from ..inference.templates import change_answer_prompt
from ..options import option
from .variants import Change, VariantConfig, compare_variants, write_variant


@dataclass
class AnswerPromptConfig(VariantConfig):
    """The answer prompts that are compared, and how."""

    answer_prompts: list[str] = option([], "Texts to try before an answer; the model's own is always tried.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.answer_prompts, str) or not self.answer_prompts or not all(self.answer_prompts):
            raise ValueError(
                f"answer_prompts={self.answer_prompts!r}: give a list of one or more texts, such as 'The answer is:'."
            )


@dataclass(frozen=True)
class AnswerPromptResult:
    """What a model is worth after one answer prompt.

    Args:
        answer_prompt: the text.
        own: whether it is the model's own.
        semcot, no_cot: rows of the report of `evaluate`, with `accuracy` and `ci95`; fractions.
        difference: to the model's own prompt, with implicit tokens, as `compare_runs` gives it; `None` for its own.
    """

    answer_prompt: str
    own: bool
    semcot: dict[str, Any]
    no_cot: dict[str, Any]
    difference: dict[str, Any] | None


def compare_answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: AnswerPromptConfig | None = None,
    *,
    progress: bool | Callable[[str, float], object] = True,
    **overrides: Any,
) -> list[AnswerPromptResult]:
    """Answer questions with implicit tokens and at once after each answer prompt.

    A generator that learned its words without the host does not depend on the answer prompt, and a frozen host was
    never taught to answer after these words: the text between them decides much. The model is as before afterwards;
    `write_answer_prompt` puts a prompt into a checkpoint.

    Args:
        model: a SemCoT model.
        tokenizer: its tokenizer.
        dataset: rows with `query` and `answer` that the model was not trained on, and that its accuracy is not
            reported on.
        config: see `AnswerPromptConfig`.
        progress: see `progress_bar`'s `show`.
        overrides: fields of the config, such as `answer_prompts`.

    Returns:
        One result for each prompt, the best first: by right answers with implicit tokens; among equals the model's
        own, then in the order given.

    Raises:
        TypeError: for an override that is not a field.
        ValueError: for a model that is not a SemCoT model, or a text that the tokenizer joins with the question; no
            question is answered then.
    """
    config = with_overrides(config, overrides) if config else AnswerPromptConfig(**overrides)
    if not hasattr(model.config, "tokenizer_checksum"):
        raise ValueError(
            f"a model of type {model.config.model_type!r} has no implicit tokens, after which the answer prompt "
            "stands: pass a SemCoT checkpoint."
        )
    own = answer_prompt_of(model.config, tokenizer)
    changes: dict[str, Change] = {
        prompt: partial(change_answer_prompt, answer_prompt=prompt) for prompt in (own, *config.answer_prompts)
    }
    compared = compare_variants(
        model, tokenizer, dataset, changes, config, methods=("no_cot", "semcot"), progress=progress
    )
    found = [
        AnswerPromptResult(prompt, prompt == own, one.rows["semcot"], one.rows["no_cot"], one.difference)
        for prompt, one in compared.items()
    ]
    return sorted(found, key=lambda result: -result.semcot["accuracy"])


def write_answer_prompt(folder: str | Path, answer_prompt: str, *, trust_remote_code: bool = False) -> None:
    """Change the answer prompt of a checkpoint in place; see `write_variant` and `change_answer_prompt`.

    Args:
        folder: the checkpoint.
        answer_prompt: the text.
        trust_remote_code: whether code of the tokenizer's own is run.

    Raises:
        ValueError: as these; nothing is changed then.
    """
    write_variant(
        folder, partial(change_answer_prompt, answer_prompt=answer_prompt), trust_remote_code=trust_remote_code
    )
