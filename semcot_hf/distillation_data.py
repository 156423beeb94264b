"""Rows and batches of stage 2: prompts on the left, answers on the right, each token's reasoning steps beside them."""

from dataclasses import dataclass

import torch

from .prompts import encode_prompt, prompt_text


def tokenize_row(row, tokenizer, answer_prompt_size, num_implicit_tokens, steps_per_token):
    """Token ids of one row in the dataset schema.

    Args:
        row: query, answer, reasoning, steps.
        tokenizer: its chat template ends a prompt on the answer prompt (`prompts.with_answer_prompt`).
        answer_prompt_size: tokens of the answer prompt.

    Returns:
        dict of `prompt_ids`; `completion_ids`, the answer with end of sequence; `step_ids`, a list of ids for each
        implicit token; `teacher_ids`, the explicit chain of thought in place of the implicit tokens.
    """
    text = prompt_text(tokenizer, row["query"])
    prompt = encode_prompt(tokenizer, text)
    cut = len(prompt) - answer_prompt_size
    end = [tokenizer.eos_token_id]
    return {
        "prompt_ids": prompt,
        "completion_ids": _continuation(tokenizer, text, prompt, " " + row["answer"]) + end,
        "step_ids": [
            tokenizer(step, add_special_tokens=False)["input_ids"] + end if step else []
            for step in group_steps(row["steps"], num_implicit_tokens, steps_per_token)
        ],
        "teacher_ids": prompt[:cut]
        + tokenizer(row["reasoning"], add_special_tokens=False)["input_ids"]
        + prompt[cut:],
    }


def group_steps(steps, num_implicit_tokens, steps_per_token=1):
    """The text that each implicit token must tell; surplus steps join the last token (SIM-CoT, section 3).

    >>> group_steps(["a", "b", "c"], 2)
    ['a', 'b c']
    >>> group_steps(["a", "b", "c"], 4, steps_per_token=2)
    ['a b', 'c', '', '']
    """
    texts = []
    for index in range(num_implicit_tokens):
        start = index * steps_per_token
        last = index == num_implicit_tokens - 1
        texts.append(" ".join(steps[start:] if last else steps[start : start + steps_per_token]))
    return texts


def _continuation(tokenizer, text, prompt, addition):
    """Ids of `addition` behind the prompt, tokenized together with it where that leaves the prompt's ids alone."""
    joint = encode_prompt(tokenizer, text + addition)
    if joint[: len(prompt)] == prompt:
        return joint[len(prompt) :]
    return tokenizer(addition, add_special_tokens=False)["input_ids"]


@dataclass
class DistillationCollator:
    """Pads rows of `tokenize_row` to a batch.

    `input_ids` (batch, prompt + answer) is padded on the left before the prompts and on the right behind the answers,
    so that all answers start in one column; `teacher_ids` likewise. `step_input_ids` is (batch, k, longest step).

    Args:
        pad_token_id: the filler.
        with_steps, with_teacher: whether to make those tensors.
    """

    pad_token_id: int
    with_steps: bool = False
    with_teacher: bool = False

    def __call__(self, rows):
        completions = [row["completion_ids"] for row in rows]
        batch = self._sequences([row["prompt_ids"] for row in rows], completions)
        batch["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        if self.with_teacher:
            teacher = self._sequences([row["teacher_ids"] for row in rows], completions)
            batch["teacher_input_ids"] = teacher["input_ids"]
            batch["teacher_attention_mask"] = teacher["attention_mask"]
        if self.with_steps:
            width = max(1, max(len(step) for row in rows for step in row["step_ids"]))
            ids = [[_right(step, width, self.pad_token_id) for step in row["step_ids"]] for row in rows]
            mask = [[_right([1] * len(step), width, 0) for step in row["step_ids"]] for row in rows]
            batch["step_input_ids"], batch["step_attention_mask"] = torch.tensor(ids), torch.tensor(mask)
        if "reasoning_embedding" in rows[0]:
            batch["reasoning_embedding"] = torch.tensor([row["reasoning_embedding"] for row in rows])
        return batch

    def _sequences(self, prompts, completions):
        left, right = max(map(len, prompts)), max(map(len, completions))
        ids, mask, completion = [], [], []
        for prompt, answer in zip(prompts, completions, strict=True):
            gap = left - len(prompt)
            ids.append([self.pad_token_id] * gap + prompt + _right(answer, right, self.pad_token_id))
            mask.append([0] * gap + [1] * len(prompt) + _right([1] * len(answer), right, 0))
            completion.append([0] * left + _right([1] * len(answer), right, 0))
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "completion_mask": torch.tensor(completion),
        }


def _right(values, width, filler):
    return values + [filler] * (width - len(values))
