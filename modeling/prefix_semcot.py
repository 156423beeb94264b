"""The host's pass over the questions without gradient: their keys and values do not depend on the implicit tokens."""

import torch
from transformers import DynamicCache


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
