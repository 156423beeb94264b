"""How questions become prompts and token ids, the same for training and inference."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

# Of a checkpoint that shows its host worked examples, the methods that do.
FEW_SHOT_METHODS = ("semcot", "semcot_hard", "escalated", "words")
ANSWER_PROMPT = "\nAnswer:"
# The default answer prompts, in the order in which they are tried; see `default_answer_prompt`.
ANSWER_PROMPTS = (ANSWER_PROMPT, "Answer:", " Answer:")
# Questions with every kind of ending that tokenizers are known to join with what follows.
PROBES = (
    "What is 2 + 2?",
    "Is it blue (yes or no)",
    "Name a colour",
    "Compute 3 =",
    "Say 12",
    'Read "he"',
    "Go on ...",
)

# For base models whose tokenizer has no chat template: the paper's "Question: {q}" form (SemCoT, appendix).
PLAIN_TEMPLATE = (
    "{%- for message in messages %}"
    # A content may be a list of parts.
    "{%- set said = message.content %}"
    "{%- if said is not string %}{%- set said = said | map(attribute='text') | join %}{%- endif %}"
    "{%- if message.role == 'user' %}{{ 'Question: ' + said | trim }}"
    "{%- else %}{{ '\n' + said + '\n' }}{%- endif %}"
    "{%- endfor %}"
)
# Tokenizing all questions of a large file at once would take many times the memory of the ids.
_TOKENIZED_AT_ONCE = 1024

Query = str | Sequence[Mapping[str, Any]]


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's chat template, the one named "default" of several, or the paper's plain form.

    Raises:
        ValueError: for several templates of which none is named "default".
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise ValueError(
                f"The tokenizer has chat templates named {sorted(template)} but none named 'default': set "
                "tokenizer.chat_template to the one to use."
            )
        return template["default"]
    if template:
        return template
    starts_with_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if starts_with_bos else "") + PLAIN_TEMPLATE


def prompt_text(tokenizer: PreTrainedTokenizerBase, query: Query, *, few_shot: bool = True) -> str:
    """Render a question (text or chat messages) as a prompt that ends where the answer begins.

    Args:
        few_shot: whether the worked examples of a SemCoT checkpoint's chat template, if any, stand before it.
    """
    messages = [{"role": "user", "content": query}] if isinstance(query, str) else query
    options: dict[str, Any] = {} if few_shot else {"few_shot": False}
    rendered = tokenizer.apply_chat_template(
        cast(list[dict[str, str]], messages),
        chat_template=chat_template_of(tokenizer),
        add_generation_prompt=True,
        tokenize=False,
        **options,
    )
    return cast(str, rendered)


def with_instruction(query: Query, instruction: str) -> Query:
    r"""Return a question (text or chat messages) with an instruction on a new line after the user's last words.

    >>> with_instruction([{"role": "user", "content": "What is 2+3?"}], "Think step by step.")
    [{'role': 'user', 'content': 'What is 2+3?\nThink step by step.'}]
    """
    if isinstance(query, str):
        return f"{query.rstrip()}\n{instruction}"
    place = max((place for place, message in enumerate(query) if message["role"] == "user"), default=None)
    if place is None:
        return query
    said = query[place]["content"]
    if isinstance(said, str):
        said = f"{said.rstrip()}\n{instruction}"
    else:
        said = [*said, {"type": "text", "text": instruction}]
    return [*query[:place], {**query[place], "content": said}, *query[place + 1 :]]


def default_answer_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    r"""Return the first of `ANSWER_PROMPTS` that keeps the tokens of the prompt before it for this tokenizer.

    Many tokenizers join line breaks. After ChatML's generation prompt, which ends with one, "\nAnswer:" would change
    the prompt's last token; "Answer:" starts a line there. After a bare question, the tokenizers of Qwen 2.5 and
    Llama 3 join "?" with a line break, so " Answer:" is used.

    Args:
        tokenizer: the host's; where its template writes one of the candidates itself, that one is returned.

    Raises:
        ValueError: when none of them does.
    """
    template = chat_template_of(tokenizer)
    for candidate in ANSWER_PROMPTS:
        if template.endswith(template_suffix(candidate)):
            return candidate
    for candidate in ANSWER_PROMPTS:
        # A word directly behind another one would not read as a prompt.
        if candidate[0].isspace() or prompt_text(tokenizer, PROBES[0])[-1:].isspace():
            with contextlib.suppress(ValueError):
                answer_prompt_ids(tokenizer, candidate)
                return candidate
    raise ValueError(
        f"answer_prompt=None: each of {', '.join(map(repr, ANSWER_PROMPTS))} changes the tokens of the prompt before "
        "it with this tokenizer: pass answer_prompt='...' that starts with one of its special tokens."
    )


def with_answer_prompt(
    tokenizer: PreTrainedTokenizerBase, answer_prompt: str | None = None
) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` whose chat template puts `answer_prompt` behind the generation prompt.

    A SemCoT checkpoint carries it, so that chats sent through `pipeline` end as the training prompts did.

    Args:
        answer_prompt: `default_answer_prompt(tokenizer)` when `None`.
    """
    if answer_prompt is None:
        answer_prompt = default_answer_prompt(tokenizer)
    suffix, template = template_suffix(answer_prompt), chat_template_of(tokenizer)
    tokenizer = with_template(tokenizer, template.removesuffix(suffix) + suffix)
    tokenizer.padding_side = "left"
    return tokenizer


def answer_prompt_ids(tokenizer: PreTrainedTokenizerBase, answer_prompt: str | None = None) -> list[int]:
    """Return the token ids with which a prompt ends when its text ends on `answer_prompt`.

    Args:
        answer_prompt: `default_answer_prompt(tokenizer)` when `None`.

    Raises:
        ValueError: when the tokenizer joins the answer prompt with the text before it, so that its ids depend on the
            question.
    """
    if answer_prompt is None:
        answer_prompt = default_answer_prompt(tokenizer)
    if not answer_prompt:
        return []
    tails = []
    for query in PROBES:
        text = prompt_text(tokenizer, query).removesuffix(answer_prompt)
        bare, full = (encode_prompt(tokenizer, part) for part in (text, text + answer_prompt))
        if full[: len(bare)] != bare:
            raise ValueError(
                f"answer_prompt={answer_prompt!r} changes the tokens of the prompt before it, {text[-12:]!r}: leave "
                "answer_prompt out, or start it with a special token of this tokenizer."
            )
        tails.append(full[len(bare) :])
    if any(tail != tails[0] for tail in tails):
        raise ValueError(
            f"answer_prompt={answer_prompt!r} is tokenized differently after different questions: leave "
            "answer_prompt out, or start it with a special token of this tokenizer."
        )
    return tails[0]


def reasoning_before(reasoning: str, answer_prompt: str) -> str:
    r"""Return explicit reasoning, ended by a line break unless `answer_prompt` starts with white space.

    >>> reasoning_before("2+3=5", "\nAnswer:"), reasoning_before("2+3=5", "Answer:"), reasoning_before("", "Answer:")
    ('2+3=5', '2+3=5\n', '')
    """
    return reasoning if not reasoning or answer_prompt[:1].isspace() or not answer_prompt else reasoning + "\n"


def choose_answer_prompt(tokenizer: PreTrainedTokenizerBase, answer_prompt: str | None, own_ids: Sequence[int]) -> str:
    """Return the answer prompt to train with.

    Args:
        tokenizer: of the training.
        answer_prompt: the one asked for; `None` means the model's own, or the default for a model without.
        own_ids: token ids of the answer prompt that the model was trained with, empty for none.

    Raises:
        ValueError: when the tokenizer already ends prompts with another answer prompt, or does not encode the model's
            own one as `own_ids`.
    """
    own = cast(str, tokenizer.decode(list(own_ids))) if own_ids else None
    if answer_prompt is None:
        if own is not None and answer_prompt_ids(tokenizer, own) != list(own_ids):
            raise ValueError(
                f"answer_prompt=None keeps the model's own, {own!r}, which processing_class does not encode as the "
                f"model's ids {list(own_ids)}: pass the model's tokenizer, or answer_prompt='...' to train on with "
                "another one."
            )
        return default_answer_prompt(tokenizer) if own is None else own
    if own is not None and answer_prompt != own and chat_template_of(tokenizer).endswith(template_suffix(own)):
        raise ValueError(
            f"answer_prompt={answer_prompt!r}: processing_class ends prompts on the model's own, {own!r}, so that "
            "they would have both. Leave answer_prompt out, or pass the host's tokenizer as processing_class to "
            "train on with another one."
        )
    return answer_prompt


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a rendered prompt, which already contains the special tokens that belong to it."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def render_prompts(
    tokenizer: PreTrainedTokenizerBase,
    queries: Iterable[Query],
    *,
    method: str,
    answer_prompt: str | None = None,
    few_shot: Sequence[Mapping] = (),
    chat: bool = True,
) -> Iterator[str]:
    """Yield each question's prompt; see `AnswerSettings` for the arguments.

    A tokenizer whose chat template writes the answer prompt (a SemCoT checkpoint's) gives the same prompts as one
    whose template does not.
    """
    tokenizer = tokenizer if chat else without_template(tokenizer)
    if answer_prompt is None:
        answer_prompt = default_answer_prompt(tokenizer)
    shown: list[Mapping[str, Any]] = []
    for row in few_shot:
        reasoning = row["reasoning"] if method == "cot" else ""
        shown.append({"role": "user", "content": row["query"]})
        answer = f"{reasoning_before(reasoning, answer_prompt)}{answer_prompt} {row['answer']}"
        shown.append({"role": "assistant", "content": answer.strip()})
    for query in queries:
        asked = [{"role": "user", "content": query}] if isinstance(query, str) else query
        own = method in FEW_SHOT_METHODS
        text = prompt_text(tokenizer, [*shown, *asked], few_shot=own).removesuffix(answer_prompt)
        yield text if method == "cot" else text + answer_prompt


def without_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, or a copy without a chat template where it has one."""
    if tokenizer.chat_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = None
    return tokenizer


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, queries: Iterable[Query], **options: Any
) -> Iterator[list[int]]:
    """Yield the token ids of each question's prompt; the options are those of `render_prompts`."""
    yield from _encode_all(tokenizer, render_prompts(tokenizer, queries, **options))


def encode_thought_prompts(
    tokenizer: PreTrainedTokenizerBase,
    queries: Iterable[Query],
    thought_prompt: Sequence[Mapping[str, str]],
    *,
    answer_prompt: str,
    chat: bool = True,
) -> Iterator[list[int]]:
    """Yield the token ids of prompts after which a thought like those of the worked examples begins.

    Args:
        tokenizer: its chat template renders the examples. Where it has no system role, the system message stands
            before the first question.
        queries: texts or lists of chat messages.
        thought_prompt: chat messages: a system message and worked examples.
        answer_prompt: left out where the chat template writes it.
        chat: whether to use the chat template.
    """
    tokenizer, shown = tokenizer if chat else without_template(tokenizer), list(thought_prompt)
    if len(shown) > 1 and shown[0]["role"] == "system":
        try:
            prompt_text(tokenizer, [*shown, {"role": "user", "content": "?"}])
        except Exception:  # Jinja's, which is no dependency
            shown[:2] = [{**shown[1], "content": f"{shown[0]['content']}\n\n{shown[1]['content']}"}]
    begin = "" if tokenizer.chat_template else "\n"

    def texts() -> Iterator[str]:
        for query in queries:
            asked = [{"role": "user", "content": query}] if isinstance(query, str) else query
            yield prompt_text(tokenizer, [*shown, *asked], few_shot=False).removesuffix(answer_prompt) + begin

    yield from _encode_all(tokenizer, texts())


def _encode_all(tokenizer: PreTrainedTokenizerBase, texts: Iterator[str]) -> Iterator[list[int]]:
    while some := list(islice(texts, _TOKENIZED_AT_ONCE)):
        yield from tokenizer(some, add_special_tokens=False)["input_ids"]


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, both (batch, longest).

    >>> ids, mask = pad_left([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """Return a copy of `tokenizer` with another chat template, the one named "default" of several."""
    tokenizer = copy.deepcopy(tokenizer)
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
    tokenizer.chat_template = template if named is None else {**named, "default": template}
    return tokenizer


def template_suffix(answer_prompt: str) -> str:
    """Return the end of a chat template that writes the answer prompt after the generation prompt."""
    text = answer_prompt.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "{%- if add_generation_prompt %}{{ '" + text + "' }}{%- endif %}"
