"""Where implicit tokens go: insertion columns, generator queries and positions, for training and generation alike."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig


def prompt_ends(attention_mask: Tensor, completion_mask: Tensor | None = None) -> Tensor:
    """Return the column after the last prompt token of each row.

    Args:
        attention_mask: (batch, length), 1 for real tokens, padding on either side.
        completion_mask: (batch, length), 1 for completion tokens. If a row has several runs of them, the last one is
            the completion and all before it is prompt. `None` if all real tokens are prompt.

    Returns:
        LongTensor (batch,).

    >>> prompt_ends(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])).tolist()
    [4, 3]
    >>> prompt_ends(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1]])).tolist()
    [2]
    >>> prompt_ends(torch.tensor([[1, 1, 1, 1, 1]]), torch.tensor([[0, 1, 0, 1, 0]])).tolist()
    [3]
    """
    real = attention_mask.bool()
    if completion_mask is not None:
        completion = completion_mask.bool()
        # Unmasked tokens after the answer, such as the end of its turn, are not part of the prompt.
        later = completion.flip(1).cumsum(dim=1).flip(1) > 0
        real = real & ~completion & (later | ~completion.any(dim=1, keepdim=True))
    columns = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * columns).amax(dim=1)


def insertion_columns(
    input_ids: Tensor, attention_mask: Tensor, answer_prompt_ids: list[int], completion_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each row's column for implicit tokens: that of the answer prompt, else the prompt's end.

    Args:
        input_ids, attention_mask: (batch, length), padding on either side.
        answer_prompt_ids: token ids of the answer prompt; may be empty.
        completion_mask: (batch, length) or `None`, see `prompt_ends`.

    Returns:
        LongTensor (batch,) of columns and BoolTensor (batch,), whether the row's prompt ends with the answer prompt.

    >>> ids = torch.tensor([[0, 5, 6, 9], [5, 6, 7, 8]])
    >>> columns, found = insertion_columns(ids, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), [9])
    >>> columns.tolist(), found.tolist()
    ([3, 4], [True, False])
    """
    ends = prompt_ends(attention_mask, completion_mask)
    size = len(answer_prompt_ids)
    if size == 0:
        return ends, torch.ones_like(ends, dtype=torch.bool)
    tail = ends[:, None] + torch.arange(-size, 0, device=ends.device)
    inside = tail.clamp(min=0)
    same = input_ids.gather(1, inside) == torch.tensor(answer_prompt_ids, device=input_ids.device)
    found = (same & attention_mask.gather(1, inside).bool() & (tail >= 0)).all(dim=1)
    return torch.where(found, ends - size, ends), found


class Slots(NamedTuple):
    """The slots of implicit tokens in a batch whose rows have different numbers of tokens.

    A row's unused slots become padding before its text, so that its tokens stand side by side, directly before what
    follows them, and no hole is left in the mask of a prompt that is padded on the left.

    Args:
        unused: LongTensor (batch,), the number of each row's slots that hold no token; they are its first ones.
        start: the text column before which the padding goes: 0, or the number of columns in a cache of the prompts.
    """

    unused: Tensor
    start: int = 0

    def mask(self, count: int) -> Tensor:
        """Return the mask (batch, count) of the slots, 1 where a token is."""
        return (torch.arange(count, device=self.unused.device) >= self.unused[:, None]).long()


def packed(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Slots | None]:
    """Move each row's tokens to the end of its slots, and drop the slots that no row uses.

    Args:
        tokens: (batch, k, size).
        mask: (batch, k), 1 where a token is; `None` if all slots hold one.

    Returns:
        (batch, longest row, size), and the slots or `None` if no row has an unused one.

    >>> tokens = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [9.0], [9.0]]])
    >>> tokens, slots = packed(tokens, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    >>> tokens[..., 0].tolist(), slots.unused.tolist()
    ([[1.0, 2.0], [0.0, 3.0]], [0, 1])
    """
    if mask is None:
        return tokens, None
    used = mask.bool().sum(dim=1)
    longest, shortest = (int(value) for value in torch.stack([used.amax(), used.amin()]))
    if shortest == tokens.shape[1]:
        return tokens, None
    order = mask.bool().long().argsort(dim=1, stable=True)[:, tokens.shape[1] - longest :]
    rows = torch.arange(len(tokens), device=order.device)[:, None]
    slots = Slots(longest - used)
    tokens = tokens[rows.to(tokens.device), order.to(tokens.device)]
    if shortest == longest:
        return tokens, None
    return tokens.masked_fill(slots.mask(longest).to(tokens.device)[..., None] == 0, 0), slots


def splice(values: Tensor, inserted: Tensor, columns: int | Tensor, slots: Slots | None = None) -> Tensor:
    """Insert `inserted` into `values` before each row's column.

    Args:
        values: (batch, length, *rest).
        inserted: (batch, k, *rest).
        columns: LongTensor (batch,), or an int if all rows share the column.
        slots: which of the inserted values are unused; these go before the row's text.

    Returns:
        (batch, length + k, *rest), differentiable in both.

    >>> splice(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8], [9, 9]]), torch.tensor([1, 3])).tolist()
    [[1, 7, 8, 2, 3], [4, 5, 6, 9, 9]]
    >>> splice(torch.tensor([[1, 2, 3]]), torch.tensor([[0, 8]]), torch.tensor([2]), Slots(torch.tensor([1]))).tolist()
    [[0, 1, 2, 8, 3]]
    """
    if isinstance(columns, int) and slots is None:
        return torch.cat([values[:, :columns], inserted, values[:, columns:]], dim=1)
    length, count = values.shape[1], inserted.shape[1]
    out = torch.arange(length + count, device=values.device)[None]
    start = columns if isinstance(columns, int) else columns.to(out.device)[:, None]
    source = torch.where(out < start + count, length + out - start, out - count)
    if slots is None:
        source = torch.where(out < start, out, source)
    else:
        unused = slots.unused.to(out.device)[:, None]
        source = torch.where(out < start + unused, out - unused, source)
        source = torch.where(out < slots.start + unused, length + out - slots.start, source)
        source = torch.where(out < slots.start, out, source)
    index = source.view(*source.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return torch.cat([values, inserted], dim=1).gather(1, index)


def spliced_columns(length: int, count: int, columns: Tensor, slots: Slots | None = None) -> Tensor:
    """Return the column of each text position after `count` tokens were spliced in: LongTensor (batch, length).

    >>> spliced_columns(3, 2, torch.tensor([1, 3])).tolist()
    [[0, 3, 4], [0, 1, 2]]
    """
    text = torch.arange(length, device=columns.device)[None]
    before = text
    if slots is not None:
        before = torch.where(text < slots.start, text, text + slots.unused.to(text.device)[:, None])
    return torch.where(text < columns[:, None], before, text + count)


def spliced_mask(
    attention_mask: Tensor, count: int, columns: int | Tensor, slots: Slots | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mask (batch, length + count) of a text with `count` slots for tokens, and its position ids."""
    if slots is None:
        inserted = attention_mask.new_ones(attention_mask.shape[0], count)
    else:
        inserted = slots.mask(count).to(attention_mask)
    mask = splice(attention_mask, inserted, columns, slots)
    return mask, positions_from_mask(mask)


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Return position ids (batch, length) that count real tokens from 0; padding before them gets 0.

    >>> positions_from_mask(torch.tensor([[0, 0, 1, 1]])).tolist()
    [[0, 0, 0, 1]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def extended_mask(attention_mask: Tensor, count: int) -> Tensor:
    """Append `count` columns of ones to a mask (batch, length).

    >>> extended_mask(torch.tensor([[0, 1]]), 2).tolist()
    [[0, 1, 1, 1]]
    """
    return torch.cat([attention_mask, attention_mask.new_ones(attention_mask.shape[0], count)], dim=1)


class PromptLayout(NamedTuple):
    """Measures of a batch of prompts.

    Args:
        lowest, highest: smallest and largest token id, padding included.
        shortest, longest: number of real tokens in the shortest and the longest row.
        columns: the column before which implicit tokens go; an int if all rows share it, else LongTensor (batch,).
        found: whether all rows end with the answer prompt.
        extent: `extent` of `generator_queries`, known if all rows share the column and no padding is within a text.
        gaps: whether padding follows a real token of its row.
        behind: whether a row ends in padding.
    """

    lowest: int
    highest: int
    shortest: int
    longest: int
    columns: int | Tensor
    found: bool
    extent: tuple[int, int] | None
    gaps: bool
    behind: bool


def prompt_layout(input_ids: Tensor, attention_mask: Tensor, answer_prompt_ids: list[int]) -> PromptLayout:
    """Measure a batch of prompts, with one device transfer if all end in the last column and none is padded.

    Equals `insertion_columns`, which needs two more transfers to find out whether all rows share a column.

    Args:
        input_ids, attention_mask: LongTensor (batch, length), padding on either side.
        answer_prompt_ids: token ids of the answer prompt; may be empty.

    >>> ids = torch.tensor([[0, 5, 6, 9], [5, 6, 7, 9]])
    >>> layout = prompt_layout(ids, (ids > 0).long(), [9])
    >>> layout.columns, layout.found, layout.shortest, layout.longest, layout.extent
    (3, True, 3, 4, (0, 2))
    >>> prompt_layout(ids, (ids > 0).long(), [7, 9]).columns.tolist()
    [4, 2]
    """
    (batch, length), size = input_ids.shape, len(answer_prompt_ids)
    measures = [*input_ids.aminmax(), *attention_mask.sum(dim=1).aminmax()]
    # If the last columns are real in all rows, all prompts end in the last column.
    measures.append(attention_mask[:, -max(size, 1) :].amin())
    measures.append((attention_mask[:, 1:] < attention_mask[:, :-1]).sum())
    if 0 < size <= length:
        measures.append((input_ids[:, -size:] == input_ids.new_tensor(answer_prompt_ids)).all(dim=1).sum())
    lowest, highest, shortest, longest, flush, falls, *ends = torch.stack(measures).tolist()
    rows, gaps, measured = ends[0] if ends else 0, falls > 0, (lowest, highest, shortest, longest)
    if not flush or rows not in (0, batch):
        columns, hits = insertion_columns(input_ids, attention_mask, answer_prompt_ids)
        behind = not flush and not bool(attention_mask[:, -1].all())
        return PromptLayout(*measured, columns, bool(hits.all()), None, gaps, behind)
    tail = size if rows else 0
    found = size == 0 or rows > 0
    if gaps:
        return PromptLayout(*measured, length - tail, found, None, gaps, False)
    # The longest row usually spans all columns.
    first = 0 if longest == length else int(attention_mask.amax(dim=0).argmax())
    return PromptLayout(*measured, length - tail, found, (first, shortest - tail), gaps, False)


def generator_queries(
    input_ids: Tensor,
    attention_mask: Tensor,
    columns: int | Tensor,
    pad_token_id: int,
    extent: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens before each row's column, padded on the left: the input of the generator.

    Args:
        input_ids, attention_mask: (batch, length), padding on either side.
        columns: LongTensor (batch,), or an int if all rows share the column.
        pad_token_id: id written at padding.
        extent: the first column of the left-aligned queries that holds a real token, and the number of tokens of the
            shortest query; computed, with a device transfer, if `None`.

    Returns:
        LongTensor (batch, longest) of ids, and LongTensor (batch, longest) of their mask or `None` without padding.

    Raises:
        ValueError: if a row has no token before its column.

    >>> prompts = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    >>> ids, mask = generator_queries(prompts, (prompts > 0).long(), torch.tensor([3, 2]), 0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 5, 6]], [[1, 1, 1], [0, 1, 1]])
    >>> generator_queries(prompts, torch.ones_like(prompts), 2, 0)
    (tensor([[5, 6],
            [5, 6]]), None)
    """
    if isinstance(columns, int):
        ids, mask = input_ids[:, :columns], attention_mask[:, :columns].long()
    else:
        source = columns[:, None] + torch.arange(-int(columns.max()), 0, device=columns.device)
        ids = input_ids.gather(1, source.clamp(min=0))
        mask = attention_mask.long().gather(1, source.clamp(min=0)) * (source >= 0)
    if extent is None and mask.shape[1]:
        falls = (mask[:, 1:] < mask[:, :-1]).sum()
        first, shortest, gaps = torch.stack([mask.amax(dim=0).argmax(), mask.sum(dim=1).amin(), falls]).tolist()
        if gaps:
            # Padding within a text moves before it: sliding windows count columns, recurrent layers read all of them,
            # and a query must not end in padding.
            order = mask.argsort(dim=1, stable=True)
            ids, mask = ids.gather(1, order), mask.gather(1, order)
            first = int(mask.amax(dim=0).argmax())
        extent = first, shortest
    elif extent is None:
        extent = 0, 0
    first, shortest = extent
    if shortest <= 0:
        raise ValueError("input_ids has a row without a prompt token: every prompt needs at least one token.")
    ids, mask = ids[:, first:], mask[:, first:]
    return (ids, None) if shortest == ids.shape[1] else (ids.masked_fill(mask == 0, pad_token_id), mask)


def check_shapes(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise ValueError for prompts without tokens, or for a mask whose shape differs from that of the ids."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}: must be (batch, length) with at least one token."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: must be that of input_ids, "
            f"{tuple(input_ids.shape)}."
        )


def check_ids(lowest: int, highest: int, vocab_size: int) -> None:
    """Raise ValueError for ids, from `lowest` to `highest`, outside a host's vocabulary."""
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"input_ids holds ids from {lowest} to {highest}: must lie within 0 and {vocab_size - 1}, since the host "
            f"knows {vocab_size} tokens. Use the model's own tokenizer; of a padding token that was added to it, set "
            "tokenizer.pad_token = tokenizer.eos_token."
        )


def check_first_ids(input_ids: Tensor | None, past_key_values: Any, vocab_size: int) -> None:
    """Raise ValueError for ids outside a host's vocabulary, unless they continue cached ones."""
    if past_key_values is None and input_ids is not None and not torch.compiler.is_compiling():
        if input_ids.numel() and not input_ids.is_meta:
            lowest, highest = torch.stack(input_ids.aminmax()).tolist()
            check_ids(lowest, highest, vocab_size)


def check_layout(layout: PromptLayout, vocab_size: int) -> None:
    """Raise ValueError for rows that are all padding or end in it, and for ids outside the host's vocabulary."""
    check_ids(layout.lowest, layout.highest, vocab_size)
    if layout.shortest == 0:
        raise ValueError(
            "attention_mask, or the padding inferred from pad_token_id without it, has a row of padding only: every "
            "prompt needs at least one token."
        )
    if layout.behind:
        raise ValueError(
            "attention_mask, or the padding inferred from pad_token_id without it, has padding at the end of a row, "
            "where the new tokens would follow it: pad on the left (tokenizer.padding_side='left')."
        )


def check_gaps(attention_mask: Tensor, config: PreTrainedConfig, recurrent: bool) -> None:
    """Raise ValueError for padding between the tokens of a row, where the host counts it as text.

    Args:
        attention_mask: (batch, length).
        config: the host's text configuration.
        recurrent: whether some of its layers are recurrent.
    """
    if not recurrent and not any(DynamicCache(config=config).is_sliding):
        return
    real = attention_mask.bool()
    starts = real[:, 1:] & ~real[:, :-1]
    if bool((starts.sum(dim=1) + real[:, 0] > 1).any()):
        raise ValueError(
            "attention_mask has padding between the tokens of a row, which sliding windows and recurrent layers of "
            "the host count as text: put all padding before the tokens, and leave past_key_values out."
        )


def context_of(config: PreTrainedConfig) -> int | None:
    """Return a text model's maximum number of positions; `None` if unlimited or scaled with the input's length."""
    rope = getattr(config, "rope_parameters", None) or {}
    dynamic = any(part.get("rope_type") == "dynamic" for part in (rope, *rope.values()) if isinstance(part, dict))
    return None if dynamic else getattr(config, "max_position_embeddings", None)


def check_context(length: int, count: int, new_tokens: int, context: int | None) -> None:
    """Raise ValueError if prompt, implicit tokens and new tokens together exceed the host's context."""
    if context is not None and length + count + new_tokens > context:
        raise ValueError(
            f"A prompt of {length} tokens, {count} implicit tokens and {new_tokens} new tokens are more than the "
            f"host's context of {context}: shorten the prompt or lower max_new_tokens."
        )


def asked_tokens(input_ids: Tensor, kwargs: dict[str, Any]) -> int:
    """Return the number of new tokens that the call's arguments ask for, at least 1."""
    if kwargs.get("max_new_tokens") is not None:
        return kwargs["max_new_tokens"]
    length = kwargs.get("max_length")
    return 1 if length is None else max(1, length - input_ids.shape[1])


def inferred_mask(input_ids: Tensor, pad_token_id: int | None, eos_token_id: int | list[int] | None) -> Tensor:
    """Return the mask that transformers infers: pad ids are padding if the pad token is no end-of-sequence token.

    >>> ids = torch.tensor([[0, 5]])
    >>> inferred_mask(ids, 0, 2).tolist(), inferred_mask(ids, 0, [0, 2]).tolist()
    ([[0, 1]], [[1, 1]])
    """
    ends = [eos_token_id] if isinstance(eos_token_id, int) else (eos_token_id or [])
    if pad_token_id is None or pad_token_id in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pad_token_id).long()
