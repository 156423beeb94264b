"""`RunningBatch`: sequences that are decoded together, and that join and leave between steps."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_join(host: PreTrainedModel) -> bool:
    """Return whether sequences can join a running batch: all layers keep keys and values, aligned on the right.

    Recurrent states would have to be joined layer by layer, and rotary embeddings that depend on the total length
    would change with the batch.
    """
    config = host.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    layers = DynamicCache(config=config).layers
    simple = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return bool(layers) and simple and not kinds & {"dynamic", "longrope"}


class RunningBatch:
    """Keys and values of sequences that are decoded together.

    Each sequence ends in the last column; shorter ones have padding before them, which the mask hides. Positions count
    a sequence's own tokens, so that its logits are, up to rounding, those that it has alone.

    Args:
        host: the causal LM.

    Attributes:
        lengths: number of tokens of each sequence in the cache.
        joins: whether sequences can join others; else a batch is started when the last one has ended.
    """

    def __init__(self, host: PreTrainedModel):
        self._host: Any = host
        self._cache: Any = None
        self._positions = "position_ids" in inspect.signature(host.forward).parameters
        self._width = 0
        self.lengths: list[int] = []
        self.joins = can_join(host)

    def join(self, cache: Cache, width: int, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Add sequences; where this fails, those that are there stay as they were.

        Args:
            cache: keys and values of prompts.
            width: its number of columns, padding included.
            lengths: number of tokens of each sequence.
            rows: the cache's row of each sequence; a row may be taken more than once.

        Raises:
            ValueError: if sequences cannot join those that are there, or rows cannot be chosen.
        """
        same = list(rows) == list(range(len(rows)))
        if not self.joins and (self.lengths or not same):
            raise ValueError(f"{type(self._host).__name__}: sequences cannot join a batch of this host.")
        if not same:
            cast(DynamicCache, cache).batch_select_indices(torch.tensor(rows, device=self._host.device))
        if not self.lengths:
            self._cache, self._width = cache, width
        else:
            self._stack(cast(Any, cache).layers)
            self._width = max(self._width, width)
            for layer in self._cache.layers:
                if layer.is_initialized and layer.is_sliding:
                    layer.cumulative_length = self._width
        self.lengths += lengths
        self._trim()

    def _stack(self, layers: Sequence[Any]) -> None:
        """Add the rows of another cache's layers, one layer after another: both caches at once take more memory."""
        changed: list[tuple[Any, int]] = []
        try:
            for own, new in zip(self._cache.layers, layers, strict=True):
                if own.is_initialized:
                    columns = own.keys.shape[2]
                    own.keys, own.values = _stacked(own.keys, new.keys), _stacked(own.values, new.values)
                    changed.append((own, columns))
        except BaseException:
            for layer, columns in changed:
                layer.keys, layer.values = (
                    part[: len(self.lengths), :, part.shape[2] - columns :] for part in (layer.keys, layer.values)
                )
            raise

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but those at `rows`, if the host allows it, or if none is left."""
        if not rows:
            self._cache, self.lengths = None, []
        elif self.joins and len(rows) < len(self.lengths):
            if list(rows) == list(range(len(rows))):
                # Copies may be what there is no memory for.
                for layer in self._cache.layers:
                    if layer.is_initialized:
                        layer.keys, layer.values = layer.keys[: len(rows)], layer.values[: len(rows)]
            else:
                self._cache.batch_select_indices(torch.tensor(rows, device=self._host.device))
            self.lengths = [self.lengths[row] for row in rows]
            self._trim()

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append one token to each sequence and return the next-token logits (sequences, vocabulary) in float32."""
        self._width += 1
        device, width = self._host.device, self._width
        self.lengths = [length + 1 for length in self.lengths]
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        mask = (torch.arange(width, device=device) >= width - lengths).long()
        inputs = self._host.prepare_inputs_for_generation(
            torch.tensor(tokens, device=device)[:, None],
            next_sequence_length=1,
            past_key_values=self._cache,
            attention_mask=mask,
            use_cache=True,
            **({"position_ids": lengths - 1} if self._positions else {}),
        )
        outputs = self._host(**inputs, return_dict=True)
        if outputs.get("past_key_values") is not None:
            self._cache = outputs.past_key_values
        return outputs.logits[:, -1].float()

    def _trim(self) -> None:
        """Drop the columns that are padding in all rows."""
        longest = max(self.lengths)
        if not self.joins or self._width <= longest:
            return
        self._width = longest
        for layer in self._cache.layers:
            if layer.is_initialized:
                columns = min(longest, layer.sliding_window - 1) if layer.is_sliding else longest
                layer.keys, layer.values = layer.keys[:, :, -columns:], layer.values[:, :, -columns:]
                if layer.is_sliding:
                    layer.cumulative_length = longest


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """Stack two tensors (rows, heads, columns, size), padded on the left to the same number of columns."""
    columns = max(first.shape[2], second.shape[2])
    padded = [torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0)) for part in (first, second)]
    return torch.cat(padded)
