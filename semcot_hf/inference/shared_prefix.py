"""The beginning that all prompts share (system prompt, few-shot examples), computed by the host once."""

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from ..modeling.offloading_semcot import execution_device
from ..modeling.question_cache_semcot import can_share, prefix_cache

# For shorter prefixes, copying the cache costs more than it saves.
SHORTEST_PREFIX = 16


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens with which all prompts begin.

    >>> common_prefix([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]])
    2
    """
    # The tokens that the smallest and the largest sequence share are shared by all between them.
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return min(len(first), len(last)) if shared is None else shared


class SharedPrefix:
    """Keys and values of a prefix, laid out for any batch of prompts that begin with it.

    A batch is padded on the left, and its first columns come from here; see `prefix_cache`.

    Args:
        model: a causal LM, or a SemCoT model, whose host is run.
        ids: token ids of the prefix.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, ids: Sequence[int]):
        self.ids = list(ids)
        self._model = model
        device = execution_device(model.get_input_embeddings())
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        prefix = torch.tensor([self.ids], device=device)
        model.get_decoder()(input_ids=prefix, past_key_values=self._cache, use_cache=True, return_dict=True)

    def __len__(self) -> int:
        return len(self.ids)

    def cache(self, lengths: Sequence[int]) -> Cache:
        """Return a new cache of the first `len(self)` columns of prompts of these lengths, padded to the longest.

        Raises:
            ValueError: when the longest prompt has no token after the prefix.
        """
        if max(lengths) <= len(self):
            raise ValueError(f"lengths={list(lengths)}: no prompt is longer than the prefix of {len(self)} tokens.")
        return prefix_cache(self._cache, max(lengths) - torch.tensor(lengths), self._model)


def find_shared_prefix(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, behind: int = 1
) -> SharedPrefix | None:
    """Return the prefix of all prompts, computed by the host; `None` when it is short or the model cannot share it.

    Args:
        model: a causal LM, or a SemCoT model.
        prompts: token ids.
        behind: number of tokens at the end of each prompt that must not belong to it.
    """
    if len(prompts) < 2 or not can_share(model):
        return None
    size = min(common_prefix(prompts), min(map(len, prompts)) - behind)
    return SharedPrefix(model, prompts[0][:size]) if size >= SHORTEST_PREFIX else None
