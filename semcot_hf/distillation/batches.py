"""Batches of stage 2: padding of tokenized rows, and the curriculum that adds words of the reasoning to a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

Batch = dict[str, torch.Tensor]


@dataclass
class DistillationCollator:
    """Pad rows of `tokenize_row` to a batch.

    `input_ids` (batch, prompt + answer) is padded on the left before the prompts and on the right after the answers,
    so that all answers start in the same column; so is `teacher_input_ids`. `step_input_ids` is (batch, k, longest
    step), `word_input_ids` (batch, k - 1, most words), `thought_input_ids` and `thought_targets` (batch, most words of
    a thought).

    Args:
        pad_token_id: the padding token.
        with_steps, with_teacher, with_words: whether to make those tensors.
    """

    pad_token_id: int
    with_steps: bool = False
    with_teacher: bool = False
    with_words: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        batch = self._sequences(columns["prompt_ids"], columns["completion_ids"])
        batch["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        if self.with_teacher:
            teacher = self._sequences(columns["teacher_ids"], columns["completion_ids"])
            batch["teacher_input_ids"], batch["teacher_attention_mask"] = (
                teacher["input_ids"],
                teacher["attention_mask"],
            )
        for name, wanted in (("step", self.with_steps), ("word", self.with_words)):
            if wanted:
                parts = [ids for row in columns[f"{name}_ids"] for ids in row]
                # A part of one token, dropped again, keeps the width above zero.
                ids, mask = (padded[:-1] for padded in pad([*parts, [0]], self.pad_token_id, "right"))
                batch[f"{name}_input_ids"] = ids.view(len(rows), -1, ids.shape[1])
                batch[f"{name}_attention_mask"] = mask.view(len(rows), -1, ids.shape[1])
        if "thought_ids" in columns:
            # A token that is dropped again keeps the width above zero.
            for name, filler in (("ids", self.pad_token_id), ("targets", -100)):
                rows_of = [*columns[f"thought_{name}"], [filler]]
                padded = pad(rows_of, filler, "right")[0][:-1]
                batch["thought_input_ids" if name == "ids" else "thought_targets"] = padded
        if "reasoning_embedding" in columns:
            batch["reasoning_embedding"] = torch.tensor(
                np.asarray(columns["reasoning_embedding"]), dtype=torch.float32
            )
        return batch

    def _sequences(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Batch:
        left, left_mask = pad(prompts, self.pad_token_id, "left")
        right, right_mask = pad(completions, self.pad_token_id, "right")
        return {
            "input_ids": torch.cat([left, right], dim=1),
            "attention_mask": torch.cat([left_mask, right_mask], dim=1),
            "completion_mask": torch.cat([torch.zeros_like(left_mask), right_mask], dim=1),
        }


def pad(rows: Sequence[list[int]], filler: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both (rows, longest row), padded on the "left" or the "right" side.

    >>> ids, mask = pad([[5, 6], [7]], 0, "right")
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    """
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=filler, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
    return ids, mask


def completion_width(batch: Mapping[str, torch.Tensor]) -> int:
    """Return the number of columns in which any row of a batch has a completion."""
    return int((batch["completion_mask"].sum(dim=0) > 0).sum())


def curriculum_stage(progress: float, share: float, num_implicit_tokens: int) -> int:
    """Return how many implicit tokens replace their words at `progress`: from 1 to all (Coconut, arXiv 2412.06769).

    Args:
        progress: completed share of the training, in [0, 1).
        share: share of the training that the curriculum lasts; its stages are equally long.
        num_implicit_tokens: k.

    >>> [curriculum_stage(done / 10, 0.6, 4) for done in range(10)]
    [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    """
    if progress >= share:
        return num_implicit_tokens
    return min(num_implicit_tokens - 1, 1 + int((num_implicit_tokens - 1) * progress / share))


def with_words(
    inputs: Mapping[str, torch.Tensor], words: torch.Tensor, words_mask: torch.Tensor, answer_prompt_size: int
) -> Batch:
    """Return a batch with words of the reasoning, as labels, between the implicit tokens and the answer prompt.

    The frozen host continues the reasoning in words after the tokens, so the tokens must carry the content of the
    words that are left out.

    Args:
        inputs: `input_ids`, `attention_mask`, `completion_mask` and `labels`, each (batch, prompt + answer), of
            `DistillationCollator`; all prompts end in the same column, with the answer prompt.
        words, words_mask: LongTensor (batch, length), padded on the right.
        answer_prompt_size: tokens of the answer prompt.

    Returns:
        The same four with up to `length` more columns. The answer prompt counts as completion, without labels.

    >>> row = torch.tensor([[5, 6, 9, 7]])
    >>> done = torch.tensor([[0, 0, 0, 1]])
    >>> labels = torch.where(done == 1, row, -100)
    >>> inputs = {"input_ids": row, "attention_mask": row > 0, "completion_mask": done, "labels": labels}
    >>> batch = with_words(inputs, torch.tensor([[8, 8]]), torch.tensor([[1, 1]]), 1)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 8, 8, 9, 7]], [[-100, -100, 8, 8, -100, 7]])
    >>> batch["completion_mask"].tolist()
    [[0, 0, 1, 1, 1, 1]]
    """
    longest = int(words_mask.sum(dim=1).max())
    words, words_mask = words[:, :longest], words_mask[:, :longest]
    cut = int((inputs["completion_mask"].sum(dim=0) == 0).sum()) - answer_prompt_size
    completion = inputs["completion_mask"].clone()
    completion[:, cut : cut + answer_prompt_size] = 1
    between = {
        "input_ids": (inputs["input_ids"], words),
        "attention_mask": (inputs["attention_mask"], words_mask),
        "completion_mask": (completion, words_mask),
        "labels": (inputs["labels"], words.masked_fill(words_mask == 0, -100)),
    }
    return {
        name: torch.cat([tensor[:, :cut], middle.to(tensor.dtype), tensor[:, cut:]], dim=1)
        for name, (tensor, middle) in between.items()
    }
