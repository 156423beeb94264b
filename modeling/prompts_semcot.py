"""What one look at a batch of prompts tells and rules out: its ids and lengths, where its implicit tokens go."""

from typing import NamedTuple

import torch

from .splicing_semcot import check_shortest_query, insertion_columns, left_aligned_queries


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
