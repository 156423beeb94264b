"""Reasoning of one word a step, which the generator of SemCoT (soft words) learns before its words become tokens."""

from dataclasses import replace

import torch
from torch import nn

from ...inference.prompting import pad_left
from .finetuning import TextModel
from .latents import continuation_loss
from .token_rows import pad_right, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit

# Of the training: where a row's start begins to fade out of the place of its first word, and where it is gone.
FADING = (0.3, 0.8)


def teach_words(setup: TrainingSetup, generator: nn.Module) -> Trained:
    """The causal LM `generator` after fine-tuning on words for the recipe's steps for each one of the budget.

    The words are each row's `words`, or its condensed reasoning where a dataset has no such column. Where rows have a
    `start`, the word that their chain starts from, it is faded out of the first word's place (`FadingStart`).

    Raises:
        ValueError: for rows without words, or whose start is no single token.
    """
    told = [row.get("words") or row.get("condensed_reasoning") for row in setup.train_rows]
    missing = sum(not words for words in told)
    if missing:
        raise ValueError(
            f"soft_words_words={setup.soft_words.words}: {missing} of {len(told)} training rows have neither "
            "'words' nor condensed reasoning; add the reasoning in one word a step, or pass 0."
        )
    steps = round(setup.soft_words.words * setup.steps)
    rows = [{**row, "reasoning": words, "steps": [words]} for row, words in zip(setup.train_rows, told, strict=True)]
    made = tokenize_rows(setup.tokenizer, rows)
    if all("start" in row for row in rows):
        model = FadingStart(generator)
        made = list(zip(made, (_start_id(setup.tokenizer, row) for row in rows), strict=True))
    else:
        model = TextModel(generator, lambda row, _: row.reasoning + row.answer)
    history = fit(model, made, replace(setup, steps=steps))
    return Trained(generator, "cot", count_trainable(model), seen_questions=steps * setup.batch_size, **history)


class FadingStart(nn.Module):
    """A generator that learns to go on from a chain's start, which fades until it has to find it in the question.

    In the place of the first word it reads (1 - s) * start + s * (first word + noise), embeddings all, where s rises
    from 0 to 1 over `FADING` of the training and the noise, as large as word embeddings are, ends with it: so one step
    does the work of two words, whose lookups it would otherwise have to learn at once. Without noise a small share
    tells the start as well as a large one, and nothing is learned until it is gone (`examples/bench/NOTES.md`).

    Args:
        generator: causal LM; all of it is trained.
    """

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, rows, progress):
        """The loss of a list of (`BenchRow`, id of its start) pairs: cross-entropy of what follows the first word."""
        made, starts = zip(*rows, strict=True)
        device, pad = self.generator.device, self.generator.config.pad_token_id or 0
        prompts, mask = (part.to(device) for part in pad_left([row.prompt for row in made], pad))
        text, text_mask = pad_right([row.reasoning[1:] + row.answer for row in made], pad, device)
        words = self.generator.get_input_embeddings()
        first, start = (
            words(torch.tensor(ids, device=device)[:, None]) for ids in ([row.reasoning[0] for row in made], starts)
        )
        gone = faded(progress)
        if gone < 1:
            noise = torch.randn_like(first) * words.weight.detach().std()
            first = torch.lerp(start, first + noise, gone)
        embeds = torch.cat([words(prompts), first], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return continuation_loss(self.generator, embeds, mask, text, text_mask)[0]


def faded(progress, span=FADING) -> float:
    """How much is gone at a progress in [0, 1) of what fades over `span`: of the start, unless said otherwise.

    >>> [round(faded(progress), 2) for progress in (0.0, 0.3, 0.55, 0.8, 0.99)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    begin, end = span
    return min(1.0, max(0.0, (progress - begin) / (end - begin)))


def _start_id(tokenizer, row):
    ids = tokenizer(row["start"], add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"start={row['start']!r} is {len(ids)} tokens: pass a word of one token, with its space.")
    return ids[0]
