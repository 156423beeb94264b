"""What a checkpoint's chat template adds to a question: worked examples before it, the answer prompt behind it."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..data.splits import normalise_question
from ..modeling import SemCoTConfig, SemCoTForCausalLM
from ..modeling.checksums_semcot import tokenizer_checksum
from .prompting import (
    PROBES,
    Query,
    answer_prompt_ids,
    chat_template_of,
    encode_prompt,
    prompt_text,
    template_suffix,
    with_answer_prompt,
    with_template,
)

# The beginning of a chat template that shows worked examples before the messages, unless `few_shot=False` is passed.
_FEW_SHOT = "{%- if add_generation_prompt and few_shot | default(true) %}{%- set few_shot_messages = "
# Behind a system message, or for templates that put this into the first question only where there is none.
_BEHIND_SYSTEM = (
    " %}{%- set few_shot_place = 1 if messages and messages[0]['role'] == 'system' else 0 %}"
    "{%- set messages = messages[:few_shot_place] + few_shot_messages + messages[few_shot_place:] %}{%- endif %}"
)
_WITHOUT_SYSTEM = (
    " %}{%- if not messages or messages[0]['role'] != 'system' %}{%- set messages = few_shot_messages + messages %}"
    "{%- endif %}{%- endif %}"
)
_SYSTEMS = ("Answer in English", "Be brief.")


def change_answer_prompt(
    model: SemCoTForCausalLM | SemCoTConfig, tokenizer: PreTrainedTokenizerBase, answer_prompt: str
) -> PreTrainedTokenizerBase:
    """Have a SemCoT model answer behind another answer prompt, and return the tokenizer to save beside it.

    What its generator learned without the host stays as it is; worked examples get the new prompt, too. A rule of
    escalation is removed: it was calibrated on answers after the old prompt.

    Args:
        model: the model, or its config, which is changed in place.
        tokenizer: the model's or the host's.
        answer_prompt: text behind the generation prompt.

    Raises:
        ValueError: as `answer_prompt_ids`, or when the text is read as another one; nothing is changed then.
    """
    # The class of a config of code from the Hub is another one.
    config: Any = getattr(model, "config", model)
    old = cast(str, tokenizer.decode(config.answer_prompt_ids or []))
    shown, tokenizer = few_shot_messages(tokenizer), without_few_shot(tokenizer)
    tokenizer = with_template(tokenizer, chat_template_of(tokenizer).removesuffix(template_suffix(old)))
    ids = answer_prompt_ids(tokenizer, answer_prompt)
    if tokenizer.decode(ids) != answer_prompt:
        raise ValueError(
            f"answer_prompt={answer_prompt!r} is read as {tokenizer.decode(ids)!r} by this tokenizer: pass a text "
            "that it gives back as it is."
        )
    tokenizer = with_answer_prompt(tokenizer, answer_prompt)
    for message in shown[1::2]:
        message["content"] = f"{message['words']}{answer_prompt} {message['answer']}"
    tokenizer, examples = _with_few_shot(tokenizer, shown)
    config.answer_prompt_ids, config.few_shot_ids, config.escalation = ids, examples, None
    if config.tokenizer_checksum is not None:
        config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    return tokenizer


def change_few_shot(
    model: SemCoTForCausalLM | SemCoTConfig, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, str]]
) -> PreTrainedTokenizerBase:
    """Have a SemCoT model's host read worked examples before each question; return the tokenizer to save with it.

    They stand in its chat template, which leaves them out with `few_shot=False`, and show thoughts as the host reads
    them: question, words, answer prompt, answer. The generator does not read them (`SemCoTConfig.few_shot_ids`), and
    the host has no part in what it learned. A rule of escalation is removed: it was calibrated on answers without.

    Args:
        model: the model, or its config, which is changed in place.
        tokenizer: the model's.
        examples: rows with `query`, `words` (of the thought) and `answer`, in place of earlier ones; none removes
            these.

    Raises:
        ValueError: for a row without one of these, or a tokenizer whose tokens of a question depend on what stands
            before it; nothing is changed then.
    """
    config: Any = getattr(model, "config", model)
    answer_prompt, shown = cast(str, tokenizer.decode(config.answer_prompt_ids or [])), []
    for row in examples:
        query, words, answer = (str(row.get(name, "")) for name in ("query", "words", "answer"))
        if not (query and words and answer):
            empty = [name for name in ("query", "words", "answer") if not str(row.get(name, ""))]
            raise ValueError(f"examples has a row without {' and '.join(empty)}: {str(dict(row))[:120]}. Complete it.")
        shown.append({"role": "user", "content": query})
        # The parts for another answer prompt; templates read the content.
        content = f"{words}{answer_prompt} {answer}"
        shown.append({"role": "assistant", "content": content, "words": words, "answer": answer})
    tokenizer, ids = _with_few_shot(without_few_shot(tokenizer), shown)
    config.few_shot_ids, config.escalation = ids, None
    if config.tokenizer_checksum is not None:
        config.tokenizer_checksum = tokenizer_checksum(tokenizer)
    return tokenizer


def few_shot_messages(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Return the chat messages of the worked examples that a tokenizer's chat template shows before a question."""
    template = chat_template_of(tokenizer)
    if not template.startswith(_FEW_SHOT):
        return []
    messages, _ = json.JSONDecoder().raw_decode(template.removeprefix(_FEW_SHOT))
    return cast(list[dict[str, str]], messages)


def check_shown(shown: Iterable[str], asked: Iterable[str]) -> None:
    """Raise a ValueError where worked examples show the answers of questions that are to be answered.

    Args:
        shown: the questions of the examples.
        asked: the questions to be answered; compared by `normalise_question`.
    """
    questions = {normalise_question(question) for question in asked}
    both = [question for question in dict.fromkeys(shown) if normalise_question(question) in questions]
    if both:
        raise ValueError(
            f"the worked examples show {len(both)} of the questions to be answered, with their answers, such as "
            f"{both[0]!r}. Take other questions, such as those of another split, or other examples."
        )


def few_shot_ids(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return `SemCoTConfig.few_shot_ids` for the worked examples in a tokenizer's chat template, `None` without.

    Raises:
        ValueError: where what stands before or behind them has other tokens than without them.
    """
    if not few_shot_messages(tokenizer):
        return None
    queries: list[Query] = [*PROBES]
    for system in _SYSTEMS:
        chat = [{"role": "system", "content": system}, {"role": "user", "content": PROBES[0]}]
        with contextlib.suppress(Exception):  # Jinja's: a template without system role.
            prompt_text(tokenizer, chat, few_shot=False)
            queries.append(chat)
    special, found = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder), None
    for query in queries:
        texts = [prompt_text(tokenizer, query, few_shot=shows) for shows in (True, False)]
        shown, plain = (encode_prompt(tokenizer, text) for text in texts)
        if shown == plain and not isinstance(query, str):
            # Shown without a system message only.
            continue
        start, size = len(os.path.commonprefix([shown, plain])), len(shown) - len(plain)
        # What repeats before and behind the examples may also belong to the question, with which tokenizers join it;
        # a message begins with a special token.
        while start and shown[start] not in special and shown[start - 1] == shown[start - 1 + size]:
            start -= 1
        block = shown[start : start + size]
        found = block if found is None else found
        if size < 1 or block != found or shown[:start] + shown[start + size :] != plain:
            raise ValueError(
                "examples change the tokens of what stands before or behind them with this tokenizer or its chat "
                "template, so that the generator's prompt could not be told from the host's: leave them out."
            )
    return found


def without_few_shot(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or a copy whose chat template shows no worked examples where it shows some."""
    if not few_shot_messages(tokenizer):
        return tokenizer
    template = chat_template_of(tokenizer).removeprefix(_FEW_SHOT)
    template = template[json.JSONDecoder().raw_decode(template)[1] :]
    return with_template(tokenizer, template.removeprefix(_BEHIND_SYSTEM).removeprefix(_WITHOUT_SYSTEM))


def _with_few_shot(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> tuple[PreTrainedTokenizerBase, list[int] | None]:
    """Return a copy of a tokenizer that shows messages before each question, and `SemCoTConfig.few_shot_ids`."""
    if not messages:
        return tokenizer, None
    # A literal of Jinja, too.
    start = _FEW_SHOT + json.dumps(messages, ensure_ascii=False)
    made = with_template(tokenizer, start + _BEHIND_SYSTEM + chat_template_of(tokenizer))
    try:
        return made, few_shot_ids(made)
    except ValueError:
        made = with_template(tokenizer, start + _WITHOUT_SYSTEM + chat_template_of(tokenizer))
        return made, few_shot_ids(made)
