"""The question cache: a host's keys and values of questions, computed without gradient, and parts of it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def cacheable_columns(columns: Tensor, length: int, logits_to_keep: int | Tensor) -> int:
    """Return the number of leading text columns that a question cache can hold.

    They precede the implicit tokens of every row, and every position whose logits are kept.

    Args:
        columns: LongTensor (batch,), the column before which each row's implicit tokens go.
        length: number of text columns.
        logits_to_keep: number of last text positions whose logits are kept; for 0 (all) or a tensor of positions,
            no column can be cached.

    >>> cacheable_columns(torch.tensor([5, 6]), 10, 3), cacheable_columns(torch.tensor([9, 9]), 10, 3)
    (5, 7)
    >>> cacheable_columns(torch.tensor([5, 6]), 10, 0)
    0
    """
    if not isinstance(logits_to_keep, int) or logits_to_keep == 0:
        return 0
    return max(0, min(int(columns.min()), length - logits_to_keep))


@torch.no_grad()
def fill_question_cache(
    host: PreTrainedModel,
    embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    question_cache: Cache | None = None,
) -> Cache:
    """Return the keys and values of a frozen causal host over the questions of a batch.

    The columns that follow attend to them as in one pass over the whole sequence, so the loss and its gradients with
    respect to the implicit tokens equal those of that pass; activations are kept for the following columns only.

    Args:
        host: the frozen host.
        embeds: (batch, columns, hidden size), input embeddings of the questions.
        attention_mask, position_ids: (batch, columns).
        question_cache: a cache of the same questions that was computed earlier, such as in an earlier epoch. It is
            returned where its batch and length are those of `embeds`. The length differs in batches where no prompt
            ends on the answer prompt, the batch under `DataParallel`, which gives each replica the whole cache.
    """
    if question_cache is not None:
        keys = getattr(question_cache.layers[0], "keys", None)
        if keys is not None and (keys.shape[0], keys.shape[-2]) == embeds.shape[:2]:
            return question_cache
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


def can_share(model: PreTrainedModel) -> bool:
    """Return whether a prefix can be cached: layers keep all keys and values, which depend only on earlier tokens.

    Unsupported: sliding windows, recurrent states, positions counted by column, and rotary embeddings that depend on
    the total length.
    """
    if model.generation_config.cache_implementation not in (None, "dynamic"):
        return False
    if model.generation_config.use_cache is False:
        return False
    config = model.config.get_text_config(decoder=True)
    known = signature(model.get_decoder().forward).parameters
    if not {"position_ids", "past_key_values"} <= set(known):
        return False
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return False
    shares_layers = getattr(config, "num_kv_shared_layers", 0)
    return not shares_layers and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


@contextmanager
def hidden_settings(model: PreTrainedModel, *names: str) -> Iterator[None]:
    """Hide settings of the model's generation config, which `generate` would add to a call's.

    Args:
        model: the model.
        names: of the settings; beside `cache_implementation`, `generate` takes no `past_key_values`.
    """
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    for name in names:
        setattr(model.generation_config, name, None)
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Hide a model's own generation config, which `generate` would add to the call's."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def prefix_cache(cache: Cache, padding: Tensor, host: PreTrainedModel) -> Cache:
    """Lay the keys and values of a prefix out for a batch of prompts that begin with it, padded on the left.

    They are the batch's first columns, as many as the prefix has tokens: in a row with d columns of padding these are
    the padding and the prefix without its last d tokens, which the row's own pass reads again. Masks, positions and
    results are therefore those of the plain batch, and only the remaining columns are computed.

    Args:
        cache: keys and values of the prefix, one row, of a host that can share them (`can_share`).
        padding: LongTensor (batch,), each row's columns of padding.
        host: the causal LM that they are of.
    """
    columns = torch.arange(cache.get_seq_length()) - padding.cpu()[:, None]
    return cut_cache(cache, torch.zeros(len(padding), dtype=torch.long), columns.clamp(min=0), host)


def cut_cache(cache: Cache, rows: Tensor, columns: Tensor, host: PreTrainedModel) -> Cache:
    """Return a copy of some rows and columns of a cache whose layers keep all keys and values (`can_share`).

    Args:
        cache: keys and values of a batch.
        rows: LongTensor (rows,).
        columns: LongTensor (rows, columns), those of each row.
        host: the causal LM that they are of.
    """
    made = DynamicCache(config=host.config.get_text_config(decoder=True))
    layers: Any = cache.layers
    for index, layer in enumerate(layers):
        row, column = (part.to(layer.keys.device) for part in (rows[:, None], columns))
        # Indexed dimensions come first: (rows, columns, heads, size).
        parts = (part[row, :, column].transpose(1, 2).contiguous() for part in (layer.keys, layer.values))
        made.update(*parts, index)
    return made
