"""Settings of inference: how questions are put to a model and how its answers are decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..options import check_range
from .prompting import default_answer_prompt, without_template

ANSWER_METHODS = ("no_cot", "cot", "semcot")
# A base model that is prompted without a chat template tends to continue with another question.
NEXT_QUESTION = "\nQuestion:"

C = TypeVar("C")


def makes_implicit_tokens(model: PreTrainedModel) -> bool:
    """Return whether `model` makes implicit tokens: a SemCoT model, also with code from the Hub, or a bench peer."""
    return hasattr(model, "implicit_embeddings")


def thinks_adaptively(model: PreTrainedModel) -> bool:
    """Return whether the number of implicit tokens differs from question to question."""
    return getattr(model.config, "thought_length", "fixed") == "adaptive"


def methods_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the methods that `model` can answer with."""
    return ANSWER_METHODS if makes_implicit_tokens(model) else ANSWER_METHODS[:2]


def answer_prompt_of(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, chat: bool = True) -> str:
    """Return the answer prompt that a SemCoT model was trained with, or the tokenizer's default for any other model.

    Args:
        chat: whether prompts are rendered by the tokenizer's chat template, where it has one.
    """
    ids = getattr(config, "answer_prompt_ids", None)
    if ids is not None:
        return cast(str, tokenizer.decode(ids))
    return default_answer_prompt(tokenizer if chat else without_template(tokenizer))


def with_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """Return a copy of a dataclass with some fields replaced, and validated again.

    Raises:
        TypeError: for names that are not fields.

    >>> with_overrides(AnswerSettings(), {"max_token": 3})
    Traceback (most recent call last):
    ...
    TypeError: unknown options max_token: AnswerSettings has method, num_implicit_tokens, max_new_tokens, \
answer_prompt, few_shot, chat, stop, temperature.
    """
    known = [field.name for field in fields(config) if field.init]  # type: ignore[arg-type]  # any dataclass
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise TypeError(f"unknown options {', '.join(unknown)}: {type(config).__name__} has {', '.join(known)}.")
    return replace(config, **overrides)  # type: ignore[type-var]  # any dataclass


@dataclass(frozen=True)
class AnswerSettings:
    """How questions become prompts and prompts become answers.

    Args:
        method: "no_cot" (the prompt ends with the answer prompt), "cot" (the prompt without it, so that the host
            reasons in words) or, for a model with implicit tokens, "semcot" (implicit tokens before the answer
            prompt). `None` means "semcot" for such a model and "no_cot" for any other.
        num_implicit_tokens: k of "semcot"; `None` means the model's own.
        max_new_tokens: most tokens of one answer.
        answer_prompt: text after the generation prompt; `None` means the one that the model was trained with,
            or `default_answer_prompt` for a model without.
        few_shot: rows with query, reasoning and answer that are shown before each question (plain causal LMs only).
        chat: whether to use the tokenizer's chat template; `None` means wherever it has one.
        stop: text that ends an answer where no chat template is used; `None` sets none.
        temperature: of sampling; 0 decodes greedily.
    """

    method: str | None = None
    num_implicit_tokens: int | None = None
    max_new_tokens: int = 256
    answer_prompt: str | None = None
    few_shot: Sequence[Mapping] = ()
    chat: bool | None = None
    stop: str | None = NEXT_QUESTION
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "max_new_tokens")
        check_range(self, "[0, inf)", "temperature")


def check_method(model: PreTrainedModel, settings: AnswerSettings) -> str:
    """Return the method of `settings` for this model.

    Raises:
        ValueError: when the model does not have it, or cannot be shown examples.
    """
    implicit, methods = makes_implicit_tokens(model), methods_of(model)
    method = ("semcot" if implicit else "no_cot") if settings.method is None else settings.method
    if method not in methods:
        raise ValueError(f"method={method!r}: a model of type {model.config.model_type!r} has {', '.join(methods)}.")
    if implicit and settings.few_shot:
        raise ValueError(
            f"few_shot has {len(settings.few_shot)} examples, but a SemCoT model was trained on questions alone: "
            "leave few_shot out, or evaluate the host by itself."
        )
    return method
