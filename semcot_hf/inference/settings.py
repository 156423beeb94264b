"""Settings of inference: how questions are put to a model and how its answers are decoded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.escalation_semcot import Escalation
from ..modeling.thought_prompt_semcot import DEFAULT_THOUGHT_PROMPT
from ..options import check_range
from .prompting import default_answer_prompt, without_template

# In the order of reports.
ANSWER_METHODS = (
    "no_cot", "cot", "condensed", "semcot", "escalated", "semcot_hard", "words", "generator", "generator_no_cot",
)  # fmt: skip
# Those of any causal LM; "condensed" only where it is asked for by name.
_HOST_METHODS = ("no_cot", "cot", "condensed")
# Those of a model whose generator thinks in words.
WORD_METHODS = ("semcot_hard", "words", "generator", "generator_no_cot")
IMPLICIT_METHODS = ("semcot", "semcot_hard")
# Those with thoughts of the generator.
THOUGHT_METHODS = (*IMPLICIT_METHODS, "escalated", "words", "generator")
# Those of `WordMethod`.
TEXT_METHODS = ("condensed", "words", "generator", "generator_no_cot")
# Least limit of the host's own thoughts: that of the recipe "prompted".
THOUGHT_LIMIT = 48
# A base model that is prompted without a chat template tends to continue with another question.
NEXT_QUESTION = "\nQuestion:"

C = TypeVar("C")


def makes_implicit_tokens(model: PreTrainedModel) -> bool:
    """Return whether `model` makes implicit tokens: a SemCoT model, also with code from the Hub, or a bench peer."""
    return hasattr(model, "implicit_embeddings")


def thinks_adaptively(model: PreTrainedModel) -> bool:
    """Return whether the number of implicit tokens differs from question to question."""
    return getattr(model.config, "thought_length", "fixed") == "adaptive"


def thinks_in_words(model: PreTrainedModel) -> bool:
    """Return whether the implicit tokens are mixtures of words that the generator writes one after another."""
    config = model.config
    return (
        hasattr(model, "implicit_words")
        and getattr(config, "projection", None) == "vocabulary"
        and getattr(config, "generator_mode", None) == "sequential"
    )


def reports_thoughts(model: PreTrainedModel) -> bool:
    """Return whether the model says of each thought its words, whether it ended, or what the host lacks of it."""
    config = model.config
    in_words = getattr(config, "projection", None) == "vocabulary" and config.separate_generator_tokenizer
    return in_words or thinks_in_words(model) or thinks_adaptively(model)


def methods_of(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the methods that are run by default for `model`."""
    if not makes_implicit_tokens(model):
        return ("no_cot", "cot")
    if not thinks_in_words(model):
        return ("no_cot", "cot", "semcot")
    mixed = model.config.mixture_top_k != 1
    left_out = ("escalated",) if mixed else ("escalated", "semcot_hard")
    return tuple(method for method in ANSWER_METHODS if method not in left_out)


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
max_reasoning_tokens, answer_prompt, few_shot, chat, stop, temperature, thought_prompt, escalation, signals, \
num_candidates, cot_instruction.
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
            reasons in words), "condensed" (worked examples have the host write a short thought, then its answer), or,
            for a model with implicit tokens, "semcot" (implicit tokens before the answer prompt). SemCoT models also
            have "escalated" (answers of "semcot" whose confidence is low are replaced by those of "cot"). Models whose
            tokens are mixtures of words that the generator writes one after another also have "semcot_hard" (the most
            probable word of each step alone, `mixture_top_k=1`), "words" (the host reads the words of "semcot" as
            text), "generator" (the generator alone writes its words, then its own answer) and "generator_no_cot" (it
            answers at once). `None` means "semcot" for a model with implicit tokens and "no_cot" for any other.
        num_implicit_tokens: k, the number of implicit tokens or the limit of a thought's words; `None` means the
            model's own, and at least 48 for "condensed".
        max_new_tokens: most tokens of one answer, which also ends with the host's context.
        max_reasoning_tokens: most tokens of one by explicit reasoning, of "cot" or "escalated"; `None` means that of
            the rule of "escalated", or `max_new_tokens`.
        answer_prompt: text after the generation prompt; `None` means the one that the model was trained with,
            or `default_answer_prompt` for a model without.
        few_shot: rows with query, reasoning and answer that are shown before each question (plain causal LMs only).
        chat: whether to use the tokenizer's chat template; `None` means wherever it has one.
        stop: text that ends an answer where no chat template is used, and is left out of it; `None` sets none. Those
            of the model's generation config end answers in any case, and are kept, as `generate` does.
        temperature: of sampling; 0 decodes greedily. Thoughts in words are greedy.
        thought_prompt: chat messages of "condensed", a system message and worked examples; `None` means the model's
            own, or else `DEFAULT_THOUGHT_PROMPT`, whose thoughts are equations.
        escalation: of "escalated", as `generate` takes it; `None` means the checkpoint's own rule.
        signals: names of `Escalation`'s signals that answers of "semcot" carry.
        num_candidates: thoughts that a generator makes for each question. Of the methods with implicit tokens and of
            "words" the host reads one of them, as `SemCoTConfig` says; "generator" goes on with the one that it finds
            most probable itself. `None` means the model's own number.
        cot_instruction: text that "cot" puts on a new line after the question that is asked, such as "Think step by
            step."; `None` asks the question alone, as "escalated" always does.
    """

    method: str | None = None
    num_implicit_tokens: int | None = None
    max_new_tokens: int = 256
    max_reasoning_tokens: int | None = None
    answer_prompt: str | None = None
    few_shot: Sequence[Mapping] = ()
    chat: bool | None = None
    stop: str | None = NEXT_QUESTION
    temperature: float = 0.0
    thought_prompt: Sequence[Mapping[str, str]] | None = None
    escalation: bool | float | Mapping[str, Any] | Escalation | None = None
    signals: Sequence[str] = ()
    num_candidates: int | None = None
    cot_instruction: str | None = None

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "max_new_tokens")
        check_range(self, "[1, inf)", "max_reasoning_tokens", optional=True)
        check_range(self, "[1, inf)", "num_candidates", optional=True)
        check_range(self, "[0, inf)", "temperature")
        if self.thought_prompt is not None:
            check_thought_prompt(self.thought_prompt, "thought_prompt")

    @property
    def reasoning_limit(self) -> int:
        """Most tokens of an answer by explicit reasoning where no rule says it."""
        return self.max_new_tokens if self.max_reasoning_tokens is None else self.max_reasoning_tokens


def read_thought_prompt(path: str | Path) -> list[dict[str, str]]:
    """Return the chat messages of a thought prompt: those in a JSON file, or `DEFAULT_THOUGHT_PROMPT` for "equations".

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for anything but a list of messages that ends with an example's thought.
    """
    if path == "equations":
        return [dict(message) for message in DEFAULT_THOUGHT_PROMPT]
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"thought_prompt={str(path)!r} is not a file: pass a JSON file of chat messages, or 'equations'."
        )
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"thought_prompt={str(path)!r} is not JSON in UTF-8 ({error}): correct the file.") from error
    check_thought_prompt(messages, f"thought_prompt={str(path)!r}")
    return cast(list[dict[str, str]], messages)


def check_thought_prompt(messages: object, name: str) -> None:
    """Raise a ValueError unless `messages` are chat messages of examples; `name` opens its message."""
    roles = []
    for message in messages if isinstance(messages, Sequence) and not isinstance(messages, str) else []:
        if not isinstance(message, Mapping) or {*message} != {"role", "content"}:
            raise ValueError(f"{name} holds {message!r}: each message needs the keys 'role' and 'content' alone.")
        if not isinstance(message["content"], str):
            raise ValueError(f"{name} holds {message!r}: its content must be text.")
        roles.append(message["role"])
    shown = roles[1:] if roles[:1] == ["system"] else roles
    if not shown or shown != ["user", "assistant"] * (len(shown) // 2):
        raise ValueError(
            f"{name} has messages of the roles {roles}: give one of 'system' at most, then examples, each of them one "
            "of 'user' and one of 'assistant'."
        )


def check_escalates(model: PreTrainedModel, method: str) -> None:
    """Raise a ValueError for a model whose `generate` knows no escalation."""
    if not hasattr(model, "signal_problem"):
        raise ValueError(
            f"method={method!r} with a rule or signals: a model of type {model.config.model_type!r} does not tell "
            "them; only SemCoT models do. Leave escalation and signals out."
        )


def check_method(model: PreTrainedModel, settings: AnswerSettings) -> str:
    """Return the method of `settings` for this model.

    Raises:
        ValueError: when the model does not have it, or cannot be shown examples.
    """
    implicit, methods = makes_implicit_tokens(model), {*methods_of(model), *_HOST_METHODS}
    if thinks_in_words(model):
        methods |= {*WORD_METHODS}
    if hasattr(model, "signal_problem"):
        methods.add("escalated")
    method = ("semcot" if implicit else "no_cot") if settings.method is None else settings.method
    if method not in methods:
        known = ", ".join(name for name in ANSWER_METHODS if name in methods)
        reason = ""
        if method in WORD_METHODS:
            reason = (
                "; it needs a SemCoT model whose generator thinks in words (generator_mode='sequential', "
                "projection='vocabulary')"
            )
        raise ValueError(f"method={method!r}: a model of type {model.config.model_type!r} has {known}{reason}.")
    if implicit and settings.few_shot:
        raise ValueError(
            f"few_shot has {len(settings.few_shot)} examples, but a SemCoT model was trained on questions alone: "
            "leave few_shot out, or evaluate the host by itself."
        )
    if method == "condensed" and settings.few_shot:
        raise ValueError(
            f"few_shot has {len(settings.few_shot)} examples, and method='condensed' shows those of a thought prompt: "
            "leave few_shot out, or pass the examples as thought_prompt."
        )
    return method
