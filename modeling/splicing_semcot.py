"""Where implicit tokens go: the one place that decides it, for training and generation alike."""

from typing import NamedTuple

import torch


def prompt_ends(attention_mask, completion_mask=None):
    """Column behind the last prompt token of each row.

    Args:
        attention_mask: (batch, length), 1 for real tokens, padded on either side.
        completion_mask: (batch, length), 1 for tokens of the completion, of which a row's last run counts, with all
            that follows it; `None` when all real tokens are prompt.

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
        # What is masked behind the answer, such as the end of its turn, is no prompt.
        later = completion.flip(1).cumsum(dim=1).flip(1) > 0
        real = real & ~completion & (later | ~completion.any(dim=1, keepdim=True))
    columns = torch.arange(1, real.shape[1] + 1, device=real.device)
    return (real * columns).amax(dim=1)


def insertion_columns(input_ids, attention_mask, answer_prompt_ids, completion_mask=None):
    """Column of each row before which its implicit tokens go: before the answer prompt, else at the prompt's end.

    Args:
        input_ids: (batch, length); attention_mask: (batch, length).
        answer_prompt_ids: list of the token ids of the answer prompt, possibly empty.
        completion_mask: (batch, length) or `None`, see `prompt_ends`.

    Returns:
        LongTensor (batch,) of columns, BoolTensor (batch,): whether the row's prompt ends on the answer prompt.

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
    wanted = torch.tensor(answer_prompt_ids, device=input_ids.device)
    inside = tail >= 0
    safe = tail.clamp(min=0)
    found = ((input_ids.gather(1, safe) == wanted) & attention_mask.gather(1, safe).bool() & inside).all(dim=1)
    return torch.where(found, ends - size, ends), found


def splice(values, inserted, columns):
    """Put `inserted` into `values` before each row's column.

    Args:
        values: (batch, length, *rest); inserted: (batch, k, *rest).
        columns: LongTensor (batch,), or a number where it is the same column in all rows.

    Returns:
        (batch, length + k, *rest), differentiable in both.

    >>> splice(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8], [9, 9]]), torch.tensor([1, 3])).tolist()
    [[1, 7, 8, 2, 3], [4, 5, 6, 9, 9]]
    """
    if isinstance(columns, int):
        return torch.cat([values[:, :columns], inserted, values[:, columns:]], dim=1)
    length, count = values.shape[1], inserted.shape[1]
    out = torch.arange(length + count, device=values.device)[None]
    start = columns[:, None]
    source = torch.where(out < start, out, torch.where(out < start + count, length + out - start, out - count))
    index = source.view(*source.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return torch.cat([values, inserted], dim=1).gather(1, index)


def spliced_columns(length, count, columns):
    """Where each text position stands after `splice`: LongTensor (batch, length).

    >>> spliced_columns(3, 2, torch.tensor([1, 3])).tolist()
    [[0, 3, 4], [0, 1, 2]]
    """
    text = torch.arange(length, device=columns.device)[None]
    return torch.where(text < columns[:, None], text, text + count)


def positions_from_mask(attention_mask):
    """Position ids (batch, length) that count real tokens from 0; padding gets 0.

    >>> positions_from_mask(torch.tensor([[0, 0, 1, 1]])).tolist()
    [[0, 0, 0, 1]]
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def left_aligned_queries(input_ids, attention_mask, columns, pad_token_id):
    """The tokens before each row's column, padded on the left: what the generator reads.

    Returns:
        LongTensor (batch, longest) of ids, LongTensor (batch, longest) of their mask or `None` where nothing is
        padding.

    Raises:
        ValueError: when a row has no token there.

    >>> prompts = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    >>> ids, mask = left_aligned_queries(prompts, (prompts > 0).long(), torch.tensor([3, 2]), 0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [0, 5, 6]], [[1, 1, 1], [0, 1, 1]])
    """
    width = int(columns.max())
    check_shortest_query(width)
    source = columns[:, None] + torch.arange(-width, 0, device=columns.device)
    mask = attention_mask.long().gather(1, source.clamp(min=0)) * (source >= 0)
    first, shortest = torch.stack([mask.amax(dim=0).argmax(), mask.sum(dim=1).amin()]).tolist()
    check_shortest_query(shortest)
    ids = input_ids.gather(1, source.clamp(min=0))[:, first:]
    if shortest == width - first:
        return ids, None
    mask = mask[:, first:]
    return ids.masked_fill(mask == 0, pad_token_id), mask


def check_shortest_query(tokens):
    """Raise ValueError where the shortest of a batch's queries has no token."""
    if tokens <= 0:
        raise ValueError("input_ids has a row without a prompt token: every prompt needs at least one token.")


class PromptLayout(NamedTuple):
    """A batch of prompts in numbers.

    Args:
        lowest, highest: smallest and largest token id, padding included.
        shortest, longest: real tokens of the shortest and of the longest row.
        first: first column in which some row has a real token.
        columns: where implicit tokens go; a number where it is the same column in all rows, else LongTensor (batch,).
        answer_size: tokens of the answer prompt behind that column, where it is the same in all rows.
        found: whether all rows end on the answer prompt.
    """

    lowest: int
    highest: int
    shortest: int
    longest: int
    first: int
    columns: int | torch.Tensor
    answer_size: int
    found: bool


def prompt_layout(input_ids, attention_mask, answer_prompt_ids):
    """Measure prompts, with a single transfer from their device where all rows end alike, one without padding.

    Args:
        input_ids, attention_mask: LongTensor (batch, length), padding on either side.
        answer_prompt_ids: list of the token ids of the answer prompt, possibly empty.

    >>> import torch
    >>> ids = torch.tensor([[0, 5, 6, 9], [5, 6, 7, 9]])
    >>> layout = prompt_layout(ids, (ids > 0).long(), [9])
    >>> layout.columns, layout.found, layout.shortest, layout.longest
    (3, True, 3, 4)
    >>> prompt_layout(ids, (ids > 0).long(), [7, 9]).columns.tolist()
    [4, 2]
    """
    (batch, length), size = input_ids.shape, len(answer_prompt_ids)
    numbers = [*input_ids.aminmax(), *attention_mask.sum(dim=1).aminmax()]
    # Where the last columns are real in all rows, all prompts end in the last one.
    numbers.append(attention_mask[:, -max(size, 1) :].amin())
    if 0 < size <= length:
        numbers.append((input_ids[:, -size:] == input_ids.new_tensor(answer_prompt_ids)).all(dim=1).sum())
    lowest, highest, shortest, longest, flush, *ends = torch.stack(numbers).tolist()
    rows = ends[0] if ends else 0
    if flush and rows in (0, batch):
        answer_size = size if rows else 0
        columns, found = length - answer_size, size == 0 or rows > 0
    else:
        columns, hits = insertion_columns(input_ids, attention_mask, answer_prompt_ids)
        answer_size, found = 0, bool(hits.all())
    # The longest row reaches from end to end, as a rule.
    first = 0 if longest == length else int(attention_mask.amax(dim=0).argmax())
    return PromptLayout(lowest, highest, shortest, longest, first, columns, answer_size, found)


def generator_queries(input_ids, attention_mask, layout, pad_token_id):
    """The tokens before each row's column: what the generator reads.

    Args:
        input_ids, attention_mask: LongTensor (batch, length); layout: their `PromptLayout`.
        pad_token_id: the id to stand at padding.

    Returns:
        LongTensor (batch, longest) of ids padded on the left, LongTensor (batch, longest) of their mask or `None`
        where nothing is padding.

    Raises:
        ValueError: when a row has no token there.

    >>> import torch
    >>> ids = torch.tensor([[0, 5, 6, 9], [5, 6, 7, 9]])
    >>> generator_queries(ids, torch.ones_like(ids), prompt_layout(ids, torch.ones_like(ids), [9]), 0)
    (tensor([[0, 5, 6],
            [5, 6, 7]]), None)
    """
    if isinstance(layout.columns, torch.Tensor):
        return left_aligned_queries(input_ids, attention_mask, layout.columns, pad_token_id)
    shortest = layout.shortest - layout.answer_size
    check_shortest_query(shortest)
    ids = input_ids[:, layout.first : layout.columns]
    if shortest == ids.shape[1]:
        return ids, None
    mask = attention_mask[:, layout.first : layout.columns]
    return ids.masked_fill(mask == 0, pad_token_id), mask


def check_shapes(input_ids, attention_mask):
    """Raise ValueError for prompts without a token, or a mask (`None` allowed) of another shape."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}: must be (batch, length) with at least one token."
        )
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: must be that of input_ids, "
            f"{tuple(input_ids.shape)}."
        )


def check_layout(layout, vocab_size):
    """Raise ValueError for a row of padding only or ids that the host does not know."""
    if layout.lowest < 0 or layout.highest >= vocab_size:
        raise ValueError(
            f"input_ids holds ids from {layout.lowest} to {layout.highest}: must lie within 0 and {vocab_size - 1}."
        )
    if layout.shortest == 0:
        raise ValueError(
            "attention_mask, or the padding inferred from pad_token_id without it, has a row of padding only: every "
            "prompt needs at least one token."
        )


def context_of(config):
    """Number of a text model's positions; `None` where it is not limited, or stretched with the text's length."""
    rope = getattr(config, "rope_parameters", None) or {}
    stretched = any(part.get("rope_type") == "dynamic" for part in (rope, *rope.values()) if isinstance(part, dict))
    return None if stretched else getattr(config, "max_position_embeddings", None)


def check_context(length, count, new_tokens, context):
    """Raise ValueError where prompt, implicit tokens and new tokens exceed the host's positions (`None`: no limit)."""
    if context is not None and length + count + new_tokens > context:
        raise ValueError(
            f"A prompt of {length} tokens, {count} implicit tokens and {new_tokens} new tokens are more than the "
            f"host's context of {context}: shorten the prompt or lower max_new_tokens."
        )


def inferred_mask(input_ids, pad_token_id, eos_token_id):
    """The mask that transformers infers: pad ids count as padding where pad and end of sequence differ.

    >>> import torch
    >>> inferred_mask(torch.tensor([[0, 5]]), 0, 2).tolist(), inferred_mask(torch.tensor([[0, 5]]), 0, [0, 2]).tolist()
    ([[0, 1]], [[1, 1]])
    """
    ends = [eos_token_id] if isinstance(eos_token_id, int) else (eos_token_id or [])
    if pad_token_id is None or pad_token_id in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pad_token_id).long()
