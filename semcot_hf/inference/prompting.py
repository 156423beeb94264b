"""How questions become prompts, and prompts with answers become token ids: the same for training and evaluation."""

import copy
from collections.abc import Sequence

import torch

ANSWER_PROMPT = "\nAnswer:"

# For base models whose tokenizer has no chat template: the paper's "Question: {q}" form (SemCoT, appendix).
PLAIN_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ 'Question: ' + message.content }}"
    "{%- else %}{{ '\n' + message.content + '\n' }}{%- endif %}"
    "{%- endfor %}"
)


def chat_template_of(tokenizer):
    """The tokenizer's chat template, of several the one named "default", or the paper's plain form when it has none.

    Raises:
        ValueError: for several templates none of which has that name.
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


def prompt_text(tokenizer, query):
    """Render a question (str, or a list of chat messages) as the prompt text that ends where an answer begins."""
    messages = [{"role": "user", "content": query}] if isinstance(query, str) else query
    return tokenizer.apply_chat_template(
        messages, chat_template=chat_template_of(tokenizer), add_generation_prompt=True, tokenize=False
    )


def with_answer_prompt(tokenizer, answer_prompt=ANSWER_PROMPT):
    """Copy of `tokenizer` whose chat template puts `answer_prompt` behind the generation prompt.

    It is what a SemCoT checkpoint carries, so that chats sent through `pipeline` end as the training prompts did.
    """
    tokenizer = copy.deepcopy(tokenizer)
    suffix, template = _suffix(answer_prompt), chat_template_of(tokenizer)
    if not template.endswith(suffix):
        named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else None
        template += suffix
        tokenizer.chat_template = template if named is None else {**named, "default": template}
    tokenizer.padding_side = "left"
    return tokenizer


def answer_prompt_ids(tokenizer, answer_prompt=ANSWER_PROMPT):
    """Token ids with which a prompt ends when its text ends on `answer_prompt`.

    Raises:
        ValueError: when the answer prompt melts into the text before it, so that its ids depend on the question.
    """
    if not answer_prompt:
        return []
    tails = []
    for query in ("What is 1 + 1?", "Is the sky blue (yes or no)"):
        text = prompt_text(tokenizer, query).removesuffix(answer_prompt)
        bare, full = (encode_prompt(tokenizer, part) for part in (text, text + answer_prompt))
        if full[: len(bare)] != bare:
            raise ValueError(
                f"answer_prompt={answer_prompt!r} changes the tokens of the prompt before it: start it with a line "
                "break or a special token of this tokenizer."
            )
        tails.append(full[len(bare) :])
    if tails[0] != tails[1]:
        raise ValueError(
            f"answer_prompt={answer_prompt!r} is tokenized differently behind different questions: start it with a "
            "line break or a special token of this tokenizer."
        )
    return tails[0]


def choose_answer_prompt(tokenizer, answer_prompt, own_ids):
    """The answer prompt to train by: `answer_prompt`, or when `None` the model's own, or else `ANSWER_PROMPT`.

    Args:
        own_ids: token ids of the answer prompt that the model was trained with, empty for none.

    Raises:
        ValueError: for another one than the model's where the tokenizer ends prompts on the model's already, and for
            a tokenizer that does not give the model's own one its ids.
    """
    own = tokenizer.decode(own_ids) if own_ids else None
    if answer_prompt is None:
        if own is not None and answer_prompt_ids(tokenizer, own) != list(own_ids):
            raise ValueError(
                f"answer_prompt=None keeps the model's own, {own!r}, whose ids {list(own_ids)} processing_class does "
                "not give it: pass the model's tokenizer, or answer_prompt='...' to train on with another one."
            )
        return ANSWER_PROMPT if own is None else own
    if own is not None and answer_prompt != own and chat_template_of(tokenizer).endswith(_suffix(own)):
        raise ValueError(
            f"answer_prompt={answer_prompt!r}: processing_class ends prompts on the model's own, {own!r}, and they "
            "would have both. Leave answer_prompt out, or pass the host's tokenizer as processing_class to train on "
            "with another one."
        )
    return answer_prompt


def shares_tokenizer(host_tokenizer, generator_tokenizer):
    """Whether each of the host's tokens has the same id for the generator, which can then read the host's ids."""
    return host_tokenizer.get_vocab().items() <= generator_tokenizer.get_vocab().items()


def encode_prompt(tokenizer, text):
    """Token ids of a rendered prompt; the template itself writes whatever special tokens belong there."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, longest).

    >>> ids, mask = pad_left([[5, 6, 7], [8]])
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _suffix(answer_prompt):
    """What a chat template ends on to put the answer prompt behind the generation prompt."""
    return "{%- if add_generation_prompt %}{{ " + _jinja_string(answer_prompt) + " }}{%- endif %}"


def _jinja_string(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
