"""Thought prompts: a system message and worked examples that have a generator think in few words, untrained."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .vocabularies_semcot import first_ids

# Worked examples of thoughts that consist of equations only.
DEFAULT_THOUGHT_PROMPT = (
    {
        "role": "system",
        "content": "Write the equations that lead to the answer, one after another on a single line, separated by "
        "semicolons. Write numbers and signs only, no words and no units.",
    },
    {"role": "user", "content": "A baker sells 4 trays of 6 rolls and has 5 rolls left. How many rolls were baked?"},
    {"role": "assistant", "content": "4*6=24; 24+5=29"},
    {
        "role": "user",
        "content": "Of 30 tickets, 12 are sold. The rest go to 3 schools in equal parts. How many each?",
    },
    {"role": "assistant", "content": "30-12=18; 18/3=6"},
    {"role": "user", "content": "Lena reads 15 pages on Monday and 8 more than that on Tuesday. How many in all?"},
    {"role": "assistant", "content": "15+8=23; 15+23=38"},
    {
        "role": "user",
        "content": "A rope of 50 metres is cut into pieces of 7 metres until 8 are left. How many pieces?",
    },
    {"role": "assistant", "content": "50-8=42; 42/7=6"},
)
_WORDS: dict[str, Any] = {
    "generator_mode": "sequential",
    "projection": "vocabulary",
    "thought_length": "adaptive",
    "mixture_top_k": 8,
    # Generators that have only ever read words go wrong more often on mixtures of their own.
    "word_feedback": True,
    "num_implicit_tokens": 48,
}
# Of an untrained instruct model with a thought prompt, and of a generator that learns its words.
RECIPES: dict[str, dict[str, Any]] = {"prompted": _WORDS, "words": _WORDS}
# Texts that tokenizers give one id each, where they have it, to the end of a line.
_LINE_BREAKS = ("\n", "\n\n", "\n\n\n", " \n", " \n\n", ".\n", ";\n", ".\n\n", ";\n\n")
_ANSWER_PROMPTS = ("\nAnswer:", "Answer:", " Answer:")
_QUESTIONS = ("What is 2 + 2?", "Name a colour", "Is it blue (yes or no)", "Compute 3 =", "Say 12")


def recipe_fields(
    recipe: str | None,
    thought_prompt: Sequence[Mapping[str, str]] | None,
    tokenizers: tuple[PreTrainedTokenizerBase, ...],
    given: Mapping[str, Any],
    separate: bool = False,
) -> dict[str, Any]:
    """Return the fields of `SemCoTConfig` for a recipe, a thought prompt, or both.

    Args:
        recipe: a name of `RECIPES`, or `None`.
        thought_prompt: chat messages, or `None` for the recipe's.
        tokenizers: those of host and generator.
        given: fields that the caller sets.
        separate: whether questions are re-tokenized for the generator.

    Raises:
        ValueError: for an unknown recipe, or different tokenizers without re-tokenizing.
    """
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r}: must be one of {tuple(RECIPES)}.")
    fields = dict(RECIPES[recipe]) if recipe is not None else {}
    if thought_prompt is None:
        thought_prompt = DEFAULT_THOUGHT_PROMPT if recipe == "prompted" else None
    host_tokenizer, generator_tokenizer = tokenizers
    if recipe == "words":
        fields["starts_with_thought_token"] = False
        fields["end_of_thought_token_ids"] = line_ends(generator_tokenizer)
        fields["answer_prompt_ids"] = default_answer_prompt_ids(host_tokenizer)
    if thought_prompt is None:
        return fields
    words, known = host_tokenizer.get_vocab(), generator_tokenizer.get_vocab()
    shared = words.keys() & known.keys()
    if not separate and (len(shared) < 0.9 * len(words) or any(words[word] != known[word] for word in shared)):
        raise ValueError(
            f"The vocabularies of {generator_tokenizer.name_or_path!r} and {host_tokenizer.name_or_path!r} differ: "
            "pass host_tokenizer= and generator_tokenizer=, so that questions are re-tokenized for the generator."
        )
    fields |= thought_prompt_fields(thought_prompt, host_tokenizer, generator_tokenizer, separate)
    fields["candidate_prompt"] = candidate_prompt_fields(host_tokenizer, thought_prompt)
    if given.get("generator_mode", fields.get("generator_mode")) == "sequential":
        fields["starts_with_thought_token"] = False
    if given.get("thought_length", fields.get("thought_length")) == "adaptive":
        fields["end_of_thought_token_ids"] = line_ends(generator_tokenizer)
    if recipe is not None:
        fields["answer_prompt_ids"] = default_answer_prompt_ids(host_tokenizer)
    return fields


def thought_prompt_fields(
    thought_prompt: Sequence[Mapping[str, str]],
    host_tokenizer: PreTrainedTokenizerBase,
    generator_tokenizer: PreTrainedTokenizerBase,
    separate: bool,
) -> dict[str, Any]:
    """Return the fields `thought_prompt_ids`, `question_marker_ids` and `question_spaces` of `SemCoTConfig`.

    White space around the question belongs to the question's tokens, with which tokenizers join it: as it stands in
    the host's prompt, or for a generator of another tokenizer as in the generator's own.
    """
    first: list[int] = []
    if generator_tokenizer.chat_template:
        before, after = _around(generator_tokenizer, thought_prompt)
    else:
        before, after = _few_shot(thought_prompt)
        first = first_ids(generator_tokenizer)
    opening, closing = _markers(host_tokenizer)
    spaces = None
    if separate:
        spaces = [before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]]
        before, after, opening = before.rstrip(), after.lstrip(), opening.rstrip()
    elif before[len(before.rstrip()) :] == opening[len(opening.rstrip()) :]:
        before, opening = before.rstrip(), opening.rstrip()
    elif not host_tokenizer.chat_template:
        opening = opening.rstrip()
    return {
        "thought_prompt_ids": [[*first, *_encode(generator_tokenizer, before)], _encode(generator_tokenizer, after)],
        "question_marker_ids": [_encode(host_tokenizer, opening), closing],
        "question_spaces": spaces,
    }


def candidate_prompt_fields(
    tokenizer: PreTrainedTokenizerBase,
    thought_prompt: Sequence[Mapping[str, str]] = DEFAULT_THOUGHT_PROMPT,
    answer_prompt_ids: Sequence[int] = (),
) -> dict[str, list[int]]:
    """Return `candidate_prompt` of `SemCoTConfig`: worked examples, after which a host scores thoughts like theirs.

    Args:
        tokenizer: the host's.
        thought_prompt: chat messages: a system message, if any, and examples.
        answer_prompt_ids: those of the answer prompt, which is left out where the chat template writes it.
    """
    fields = thought_prompt_fields(thought_prompt, tokenizer, tokenizer, separate=False)
    before, after = fields["thought_prompt_ids"]
    opening, closing = fields["question_marker_ids"]
    size = len(answer_prompt_ids)
    if size and after[-size:] == list(answer_prompt_ids):
        after = after[:-size]
    ends = {"end": line_ends(tokenizer)[:1]}
    return {"before": before, "after": after, "opening": opening, "closing": closing, **ends}


def _few_shot(messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Return what stands before and after a question in a prompt for models without chat template.

    >>> _few_shot([{"role": "user", "content": "1 and 2?"}, {"role": "assistant", "content": "1+2=3"}])
    ('Question: 1 and 2?\\nThought: 1+2=3\\n\\nQuestion: ', '\\nThought:')
    """
    starts = {"user": "Question: ", "assistant": "Thought: "}
    ends = {"user": "\n"}
    shown = [
        f"{starts.get(message['role'], '')}{message['content']}{ends.get(message['role'], chr(10) * 2)}"
        for message in messages
    ]
    return "".join([*shown, starts["user"]]), "\nThought:"


def line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a line or a message: line breaks, the end-of-sequence token, the end of a turn.

    The first is a plain line break where that is one token: it ends what a generator learns to write.
    """
    ends = {tokenizer.eos_token_id, *(ids[0] for text in _LINE_BREAKS if len(ids := _encode(tokenizer, text)) == 1)}
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "="}]
        rendered = str(tokenizer.apply_chat_template(turn, tokenize=False))
        closing = _encode(tokenizer, rendered.rpartition("=")[2])
        ends |= set(closing[:1]) & set(tokenizer.added_tokens_decoder)
    plain = _encode(tokenizer, "\n")
    return sorted((end for end in ends if end is not None), key=lambda end: ([end] != plain, end))


def default_answer_prompt_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the first answer prompt that keeps the tokens of the prompt before it; empty if none does."""
    texts = [_rendered(tokenizer, [{"role": "user", "content": question}]) for question in _QUESTIONS]
    for answer_prompt in _ANSWER_PROMPTS:
        bare = [text.removesuffix(answer_prompt) for text in texts]
        if not answer_prompt[0].isspace() and not bare[0][-1:].isspace():
            continue
        pairs = [(_encode(tokenizer, text), _encode(tokenizer, text + answer_prompt)) for text in bare]
        ends = [full[len(ids) :] for ids, full in pairs]
        if all(full[: len(ids)] == ids for ids, full in pairs) and ends == ends[:1] * len(ends):
            return ends[0]
    return []


def _markers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """Return the text that opens the last user message in a prompt, and the ids that close it."""
    if not tokenizer.chat_template:
        return "Question: ", []
    before, _ = _around(tokenizer, ())
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "="}]
    later, _ = _around(tokenizer, turns)
    shared = 0
    while shared < min(len(before), len(later)) and before[-1 - shared] == later[-1 - shared]:
        shared += 1
    opening = before[len(before) - shared :]
    rows = [_encode(tokenizer, _rendered(tokenizer, [{"role": "user", "content": text}])) for text in _QUESTIONS]
    size = 0
    while all(len(row) > size and row[-1 - size] == rows[0][-1 - size] for row in rows):
        size += 1
    closing = rows[0][len(rows[0]) - size :]
    special = set(tokenizer.added_tokens_decoder)
    end = next((place + 1 for place, token in enumerate(closing) if token in special), len(closing))
    return opening, closing[:end]


def _around(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Return what the chat template writes before and after a question that follows `messages`."""
    place = "\u2045question\u2046"
    shown = [*messages, {"role": "user", "content": place}]
    try:
        text = _rendered(tokenizer, shown)
    except Exception:  # Jinja's, which is no dependency of these files
        if shown[0]["role"] != "system":
            raise
        # Templates without a system role.
        first = {**shown[1], "content": f"{shown[0]['content']}\n\n{shown[1]['content']}"}
        text = _rendered(tokenizer, [first, *shown[2:]])
    before, _, after = text.partition(place)
    return before, after


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    if not tokenizer.chat_template:
        return f"Question: {messages[-1]['content']}"
    chat: Any = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
