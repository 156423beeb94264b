"""Training questions as token ids, and their padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ...distillation.data import RowSettings, tokenize_row
from ...inference.prompting import answer_prompt_ids, pad_left, with_answer_prompt


@dataclass(frozen=True)
class BenchRow:
    """One training question as token ids.

    Args:
        prompt: the question with the generation prompt, without the answer prompt.
        steps: the reasoning, step by step.
        answer: the answer prompt and the answer, with end of sequence.
    """

    prompt: list[int]
    steps: list[list[int]]
    answer: list[int]

    @property
    def reasoning(self) -> list[int]:
        """The ids of all steps in one list."""
        return [token for step in self.steps for token in step]


def tokenize_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict]) -> list[BenchRow]:
    """Tokenize rows of the dataset schema; the reasoning of a row without `steps` is one step.

    The whole reasoning is tokenized at once and cut where each step's text ends, so that explicit CoT is trained on
    the tokens that the tokenizer itself makes of the text.
    """
    tail = len(answer_prompt_ids(tokenizer))
    prompted, settings = with_answer_prompt(tokenizer), RowSettings(tail, num_implicit_tokens=0)
    made = []
    for row in rows:
        steps = list(row.get("steps") or [row["reasoning"]])
        ids = tokenize_row({**row, "steps": steps}, prompted, settings)
        cut = len(ids["prompt_ids"]) - tail
        answer = ids["prompt_ids"][cut:] + ids["completion_ids"]
        made.append(BenchRow(prompt=ids["prompt_ids"][:cut], steps=_tokenize_steps(tokenizer, steps), answer=answer))
    return made


def _tokenize_steps(tokenizer: PreTrainedTokenizerBase, steps: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer(" ".join(steps), add_special_tokens=False, return_offsets_mapping=True)
    ends, position = [], 0
    for step in steps:
        position += len(step) + 1
        ends.append(position)
    parts: list[list[int]] = [[] for _ in steps]
    index = 0
    for token, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        while index < len(steps) - 1 and end > ends[index] - 1:
            index += 1
        parts[index].append(token)
    return parts


def pad_right(
    sequences: Sequence[list[int]], filler: int, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (batch, longest), padded on the right.

    >>> ids, mask = pad_right([[5, 6, 7], [8]], 0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    width = max(map(len, sequences))
    ids = [sequence + [filler] * (width - len(sequence)) for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def semcot_inputs(
    prompts: Sequence[list[int]], texts: Sequence[list[int]], filler: int, device: torch.device
) -> dict[str, Any]:
    """Return the arguments of SemCoT's forward pass for the loss of `texts` behind prompts and implicit tokens.

    >>> inputs = semcot_inputs([[5, 6], [7]], [[8], [9]], 0, torch.device("cpu"))
    >>> inputs["input_ids"].tolist(), inputs["labels"].tolist(), inputs["logits_to_keep"]
    ([[5, 6, 8], [0, 7, 9]], [[-100, -100, 8], [-100, -100, 9]], 2)
    """
    ids, mask = (part.to(device) for part in pad_left(prompts, filler))
    text, text_mask = pad_right(texts, filler, device)
    return {
        "input_ids": torch.cat([ids, text], dim=1),
        "attention_mask": torch.cat([mask, text_mask], dim=1),
        "completion_mask": torch.cat([torch.zeros_like(mask), text_mask], dim=1),
        "labels": torch.cat([torch.full_like(ids, -100), text.masked_fill(text_mask == 0, -100)], dim=1),
        "logits_to_keep": text.shape[1] + 1,
        "use_question_cache": True,
    }
