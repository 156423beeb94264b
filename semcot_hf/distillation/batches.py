"""Stage 2's curriculum over steps: words of reasoning behind the implicit tokens, step by step fewer of them."""

import torch


def curriculum_stage(progress, share, num_implicit_tokens):
    """Implicit tokens whose words are left out at `progress`, from 1 to all of them (Coconut, arXiv 2412.06769).

    Args:
        progress: share of the training that is done, in [0, 1).
        share: share of the training that the curriculum lasts; its stages are of equal length.
        num_implicit_tokens: k.

    >>> [curriculum_stage(done / 10, 0.6, 4) for done in range(10)]
    [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    """
    if progress >= share:
        return num_implicit_tokens
    return min(num_implicit_tokens - 1, 1 + int((num_implicit_tokens - 1) * progress / share))


def with_words(inputs, words, words_mask, answer_prompt_size):
    """A batch in which the words of some steps stand, as labels, between the implicit tokens and the answer prompt.

    The frozen host goes on reasoning in words behind the tokens, so these must tell it what the left out words told.

    Args:
        inputs: `input_ids`, `attention_mask`, `completion_mask`, `labels`, each (batch, prompt + answer), of
            `DistillationCollator`; all prompts end in one column, on the answer prompt.
        words, words_mask: LongTensor (batch, length), padded on the right.
        answer_prompt_size: tokens of the answer prompt.

    Returns:
        The same four with `length` more columns. The answer prompt counts as completion, but has no labels.

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
