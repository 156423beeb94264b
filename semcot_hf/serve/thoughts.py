"""`make_thoughts`: the implicit tokens of a batch of prompts, their numbers, and what they say."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Thought(NamedTuple):
    """The implicit tokens of a batch.

    Args:
        embeddings: (batch, k, host hidden size), or `None` for the host alone.
        mask: (batch, k), 1 where a token is, or `None` likewise.
        lengths: number of tokens of each prompt.
        texts: what each prompt's tokens say; `None` where it was not asked for.
    """

    embeddings: Tensor | None
    mask: Tensor | None
    lengths: list[int]
    texts: list[str | None]


def says_words(model: PreTrainedModel) -> bool:
    """Return whether a model's implicit tokens are mixtures of words, which can be read."""
    return getattr(model.config, "projection", None) == "vocabulary" and hasattr(model, "implicit_words")


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
        model: a model with `implicit_embeddings`, unless `count` is 0.
        tokenizer: reads the words where the model has no tokenizer of its own.
        ids, mask: (batch, length), padded on the left.
        count: number of implicit tokens, or their limit.
        wanted: whose texts are wanted.
    """
    texts: list[str | None] = [None] * len(ids)
    if count == 0:
        return Thought(None, None, [0] * len(ids), texts)
    made = cast(Callable[..., tuple[Tensor, Tensor]], cast(Any, model).implicit_embeddings)
    embeddings, used = made(ids, mask, count, return_mask=True)
    asked = [row for row, wants in enumerate(wanted) if wants]
    if asked:
        found = implicit_texts(model, tokenizer, ids[asked], mask[asked], count)
        for row, text in zip(asked, found, strict=True):
            texts[row] = text
    return Thought(embeddings, used, used.sum(dim=1).tolist(), texts)


def implicit_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor, count: int
) -> list[str]:
    """Return what the implicit tokens of prompts say, by the generator's tokenizer if the model carries it."""
    own = getattr(model, "generator_tokenizer", None)
    return cast(Any, model).implicit_text(ids, mask, count, tokenizer=tokenizer if own is None else own)
