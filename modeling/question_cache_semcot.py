"""The host's pass over the questions without gradient: their keys and values do not depend on the implicit tokens."""

import contextlib
import contextvars

import torch
from transformers import DynamicCache

_KNOWN = contextvars.ContextVar("known_questions", default=None)


def question_split(columns, length, logits_to_keep):
    """Text columns that come before every row's implicit tokens and before every wanted logit.

    Args:
        columns: LongTensor (batch,), where implicit tokens go; length: text columns.
        logits_to_keep: wanted last text positions; without a number of them there is no split.

    >>> question_split(torch.tensor([5, 6]), 10, 3), question_split(torch.tensor([9, 9]), 10, 3)
    (5, 7)
    >>> question_split(torch.tensor([5, 6]), 10, 0)
    0
    """
    if not isinstance(logits_to_keep, int) or logits_to_keep == 0:
        return 0
    return max(0, min(int(columns.min()), length - logits_to_keep))


@contextlib.contextmanager
def known_questions(cache):
    """While it lasts, `question_cache` gives `cache`, made of stored keys and values, instead of running the host.

    Args:
        cache: of the questions of one batch, for one forward, which adds to it; `None` for none.
    """
    token = _KNOWN.set(cache)
    try:
        yield
    finally:
        _KNOWN.reset(token)


@torch.no_grad()
def question_cache(host, embeds, attention_mask, position_ids):
    """Keys and values of a frozen, causal host over the questions; no gradient flows into them.

    What follows attends to them as it would in one pass over the whole sequence, so that loss and gradients with
    respect to the implicit tokens are those of that pass, while activations are kept for what follows only.

    Args:
        embeds: (batch, columns, hidden); attention_mask, position_ids: (batch, columns).

    Returns:
        `DynamicCache`.
    """
    known = _KNOWN.get()
    # Where no prompt of a batch ends on the answer prompt, its questions have other columns than the stored ones.
    if known is not None and known.get_seq_length() == embeds.shape[1]:
        return known
    cache = DynamicCache(config=host.config.get_text_config())
    host(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache
