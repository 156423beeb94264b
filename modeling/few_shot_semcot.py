"""Worked examples (few-shot) before a question in the host's prompt; the generator reads the prompt without them."""

import torch
from torch import Tensor


def few_shot_columns(ids: Tensor, mask: Tensor, few_shot_ids: list[int]) -> tuple[Tensor, Tensor]:
    """Find the worked examples in prompts.

    Args:
        ids, mask: (batch, length), padding on either side.
        few_shot_ids: `SemCoTConfig.few_shot_ids`.

    Returns:
        LongTensor (batch,), the column of their first token, and BoolTensor (batch,), whether a row has them.

    >>> ids = torch.tensor([[0, 1, 7, 8, 5], [1, 7, 8, 5, 6], [0, 0, 1, 5, 6]])
    >>> columns, found = few_shot_columns(ids, (ids > 0).long(), [7, 8])
    >>> columns[found].tolist(), found.tolist()
    ([2, 1], [True, True, False])
    """
    size, wanted = len(few_shot_ids), ids.new_tensor(few_shot_ids)
    found = torch.zeros(ids.shape[0], max(1, ids.shape[1] - size + 1), dtype=torch.bool, device=ids.device)
    if ids.shape[1] >= size:
        # Compared in full only where both ends are right.
        starts = (ids[:, : found.shape[1]] == wanted[0]) & (ids[:, size - 1 :] == wanted[-1])
        rows, columns = starts.nonzero(as_tuple=True)
        places = columns[:, None] + torch.arange(size, device=ids.device)
        same = (ids[rows[:, None], places] == wanted) & mask[rows[:, None], places].bool()
        found[rows, columns] = same.all(dim=1)
    return found.int().argmax(dim=1), found.any(dim=1)


def without_few_shot(ids: Tensor, mask: Tensor | None, few_shot_ids: list[int] | None) -> tuple[Tensor, Tensor | None]:
    """Return prompts without their worked examples, as a chat template renders them with `few_shot=False`.

    Args:
        ids, mask: (batch, length), padding on either side; `None` for no padding.
        few_shot_ids: `SemCoTConfig.few_shot_ids`.

    Returns:
        ids (batch, longest) padded on the left, and their mask or `None` without padding; the arguments where no row
        has the examples.

    >>> ids = torch.tensor([[0, 1, 7, 8, 5], [1, 7, 8, 5, 6], [0, 0, 1, 5, 6]])
    >>> ids, mask = without_few_shot(ids, (ids > 0).long(), [7, 8])
    >>> ids.tolist(), mask.tolist()
    ([[0, 1, 5], [1, 5, 6], [1, 5, 6]], [[0, 1, 1], [1, 1, 1], [1, 1, 1]])
    """
    if not few_shot_ids:
        return ids, mask
    real = torch.ones_like(ids) if mask is None else mask.to(ids.device)
    columns, found = few_shot_columns(ids, real, few_shot_ids)
    if not found.any():
        return ids, mask
    places = torch.arange(ids.shape[1], device=ids.device) - columns[:, None]
    kept = real.bool() & ~(found[:, None] & (places >= 0) & (places < len(few_shot_ids)))
    lengths = kept.sum(dim=1)
    longest, shortest = int(lengths.max()), int(lengths.min())
    order = kept.long().argsort(dim=1, stable=True)[:, ids.shape[1] - longest :]
    kept = kept.gather(1, order)
    return ids.gather(1, order).masked_fill(~kept, 0), None if shortest == longest else kept.long()


def few_shot_prefix(ids: Tensor, mask: Tensor | None, few_shot_ids: list[int] | None) -> list[int]:
    """Return what all prompts begin with, up to the end of their worked examples; empty unless all have them.

    Args:
        ids, mask: (batch, length), padded on the left; `None` for no padding.
        few_shot_ids: `SemCoTConfig.few_shot_ids`.

    >>> ids = torch.tensor([[0, 1, 7, 8, 5], [1, 7, 8, 5, 6]])
    >>> few_shot_prefix(ids, (ids > 0).long(), [7, 8])
    [1, 7, 8]
    """
    if not few_shot_ids:
        return []
    real = torch.ones_like(ids) if mask is None else mask.to(ids.device).long()
    columns, found = few_shot_columns(ids, real, few_shot_ids)
    starts = real.argmax(dim=1)
    sizes = (columns - starts).tolist()
    if not found.all() or min(sizes) < max(sizes):
        return []
    prefixes = ids.gather(1, starts[:, None] + torch.arange(sizes[0] + len(few_shot_ids), device=ids.device))
    return prefixes[0].tolist() if (prefixes == prefixes[0]).all() else []


def plain_ids(prompt: list[int], few_shot_ids: list[int] | None) -> list[int]:
    """Return a prompt without its worked examples.

    >>> plain_ids([1, 7, 8, 5], [7, 8]), plain_ids([1, 5], [7, 8]), plain_ids([], None)
    ([1, 5], [1, 5], [])
    """
    return without_few_shot(torch.tensor([prompt]), None, few_shot_ids)[0][0].tolist() if few_shot_ids else prompt
