"""`make_thoughts`: the implicit tokens of a batch of prompts, their numbers, and what they say."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.thoughts_semcot import Thoughts


class Thought(NamedTuple):
    """The implicit tokens of a batch.

    Args:
        embeddings: (batch, k, host hidden size), or `None` for the host alone.
        mask: (batch, k), 1 where a token is, or `None` likewise.
        lengths: number of tokens of each prompt.
        texts: what each prompt's tokens say; `None` where it was not asked for.
        signals: of each prompt's thought, by the names of `Escalation`, where the model has them.
    """

    embeddings: Tensor | None
    mask: Tensor | None
    lengths: list[int]
    texts: list[str | None]
    signals: list[dict[str, float]]


def says_words(model: PreTrainedModel) -> bool:
    """Return whether a model's implicit tokens are mixtures of words, which can be read."""
    return getattr(model.config, "projection", None) == "vocabulary" and hasattr(model, "implicit_words")


def can_be_read(model: PreTrainedModel) -> bool:
    """Return whether a model's implicit tokens can be read as text: as words, or by its step decoder."""
    return says_words(model) or getattr(model, "step_decoder", None) is not None


def no_thoughts(prompts: int) -> Thought:
    """Return what `make_thoughts` does for prompts that the host alone answers."""
    return Thought(None, None, [0] * prompts, [None] * prompts, [{} for _ in range(prompts)])


@torch.no_grad()
def make_thoughts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    mask: Tensor,
    count: int,
    wanted: Sequence[bool],
) -> Thought:
    """Make the implicit tokens of prompts.

    Args:
        model: a model with `implicit_thoughts`, unless `count` is 0.
        tokenizer: the host's; it reads words too where the model has no tokenizer of its own.
        ids, mask: (batch, length), padded on the left.
        count: number of implicit tokens, or their limit.
        wanted: whose texts are wanted.
    """
    if count == 0:
        return no_thoughts(len(ids))
    texts: list[str | None] = [None] * len(ids)
    thoughts: Thoughts = cast(Any, model).implicit_thoughts(ids, mask, count)
    tokens = thoughts.embeddings
    used = tokens.new_ones(tokens.shape[:2], dtype=torch.long) if thoughts.mask is None else thoughts.mask
    own = getattr(model, "generator_tokenizer", None) or tokenizer
    for row, wants in enumerate(wanted):
        if wants and thoughts.words is not None:
            said = [word for word in thoughts.words[row].tolist() if word >= 0]
            texts[row] = str(own.decode(said, skip_special_tokens=False))
        elif wants and getattr(model, "step_decoder", None) is not None:
            # One row after another, so that nobody else's wish changes a text by rounding.
            texts[row] = "\n".join(cast(Any, model)._steps_of(tokens[row : row + 1], tokenizer)[0])
    known = {"thought_entropy": thoughts.mean_entropy(), "thought_ended": thoughts.ended}
    values = {name: part.float().tolist() for name, part in known.items() if part is not None}
    signals = [{name: part[row] for name, part in values.items()} for row in range(len(ids))]
    return Thought(tokens, used, used.sum(dim=1).tolist(), texts, signals)
