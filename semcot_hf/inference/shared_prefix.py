"""The beginning that all prompts share (system prompt, few-shot examples), run through the host once for all."""

import inspect
from collections.abc import Sequence

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# A shorter one saves less than the copies of its cache are worth.
SHORTEST_PREFIX = 16


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all prompts begin.

    >>> common_prefix([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]])
    2
    """
    # What the smallest and the largest sequence share, those between them share too.
    first, last = min(prompts), max(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return min(len(first), len(last)) if shared is None else shared


class SharedPrefix:
    """Keys and values of a prefix, laid out for any batch of prompts that begin with it.

    A batch is padded on the left as ever. Its first columns, as many as the prefix has tokens, come from here: in a
    row with d columns of padding they are those d and the prefix without its last d tokens, which the row's own pass
    reads again. So masks, positions and results are those of the plain batch, and only the remaining columns are
    computed.

    Args:
        model: a causal LM, or a SemCoT model, whose host runs.
        ids: token ids of the prefix.
    """

    @torch.no_grad()
    def __init__(self, model, ids: Sequence[int]):
        self.ids = list(ids)
        self._config = model.config.get_text_config(decoder=True)
        device = model.get_input_embeddings().weight.device
        cache = DynamicCache(config=self._config)
        model.get_decoder()(
            input_ids=torch.tensor([self.ids], device=device), past_key_values=cache, use_cache=True, return_dict=True
        )
        # (heads, prefix, head size), since the prefix is one row.
        self._layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]

    def __len__(self):
        return len(self.ids)

    def cache(self, lengths: Sequence[int]) -> DynamicCache:
        """A fresh cache of the first `len(self)` columns of prompts of these lengths, padded to the longest.

        Raises:
            ValueError: when the longest prompt has no token behind the prefix.
        """
        if max(lengths) <= len(self):
            raise ValueError(f"lengths={list(lengths)}: no prompt goes on behind the prefix of {len(self)} tokens.")
        padding = max(lengths) - torch.tensor(lengths)
        source = (torch.arange(len(self)) - padding[:, None]).clamp(min=0)
        cache = DynamicCache(config=self._config)
        for index, (keys, values) in enumerate(self._layers):
            columns = source.to(keys.device)
            cache.update(keys[:, columns].transpose(0, 1), values[:, columns].transpose(0, 1), index)
        return cache


def find_shared_prefix(model, prompts: Sequence[Sequence[int]], *, behind: int = 1) -> SharedPrefix | None:
    """The prefix of all prompts, run through the host; `None` where there is none worth it or the model cannot.

    Args:
        model: a causal LM, or a SemCoT model.
        prompts: token ids.
        behind: tokens at the end of each prompt that cannot belong to it.
    """
    if len(prompts) < 2 or not can_share(model):
        return None
    size = min(common_prefix(prompts), min(map(len, prompts)) - behind)
    return SharedPrefix(model, prompts[0][:size]) if size >= SHORTEST_PREFIX else None


def can_share(model) -> bool:
    """Whether a prefix can be cached: layers keep all keys and values, and these depend on what they come from alone.

    That leaves out sliding windows, recurrent states, positions counted by column, and rotary embeddings that change
    with the length of the whole.
    """
    if model.generation_config.cache_implementation not in (None, "dynamic"):
        return False
    if model.generation_config.use_cache is False:
        return False
    config = model.config.get_text_config(decoder=True)
    known = inspect.signature(model.get_decoder().forward).parameters
    if not {"position_ids", "past_key_values"} <= set(known):
        return False
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return False
    shares_layers = getattr(config, "num_kv_shared_layers", 0)
    return not shares_layers and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
