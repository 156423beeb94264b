"""Reasoning in one word a step, which the generator of SemCoT (soft words) learns before its words become tokens."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...inference.prompting import pad_left
from ..recipe import faded
from .finetuning import TextModel
from .latents import continuation_loss, word_embeddings
from .token_rows import BenchRow, pad_right, tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit

# Progress of the training between which a row's start fades out of the place of its first word.
FADING = (0.3, 0.8)


def teach_words(setup: TrainingSetup, generator: PreTrainedModel) -> Trained:
    """Fine-tune the causal LM `generator` on words, for `setup.soft_words.words` times the setup's steps.

    The words are each row's `words`, or its condensed reasoning in a dataset without that column. Where rows have a
    `start`, the word at which their chain starts, it fades out of the first word's place (`FadingStart`).

    Raises:
        ValueError: for rows without words, or with a start that is not a single token.
    """
    texts = [row.get("words") or row.get("condensed_reasoning") for row in setup.train_rows]
    missing = sum(not text for text in texts)
    if missing:
        raise ValueError(
            f"soft_words_words={setup.soft_words.words}: {missing} of {len(texts)} training rows have neither "
            "'words' nor condensed reasoning; add the reasoning in one word a step, or pass 0."
        )
    steps = round(setup.soft_words.words * setup.steps)
    rows = [{**row, "reasoning": text, "steps": [text]} for row, text in zip(setup.train_rows, texts, strict=True)]
    tokenized, setup = tokenize_rows(setup.tokenizer, rows), replace(setup, steps=steps)
    if all("start" in row for row in rows):
        started = list(zip(tokenized, (_start_id(setup.tokenizer, row) for row in rows), strict=True))
        history = fit(FadingStart(generator), started, setup)
    else:
        history = fit(TextModel(generator, lambda row, _: row.reasoning + row.answer), tokenized, setup)
    return Trained(generator, "cot", count_trainable(generator), seen_questions=steps * setup.batch_size, **history)


class FadingStart(nn.Module):
    """A generator that learns to continue a chain from its start, and then to find the start in the question.

    The first word takes two lookups: the start, and its rule. To learn them one after the other, the first word's
    input is (1 - s) * start + s * (first word + noise) in embeddings. s rises from 0 to 1 over `FADING`; the noise has
    the scale of word embeddings and ends with the start. Without it even a small share of the start can be read
    clearly, and nothing more is learned until the start is gone (`examples/bench/NOTES.md`).

    Args:
        generator: causal LM; all of it is trained.
    """

    def __init__(self, generator: PreTrainedModel) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, rows: Sequence[tuple[BenchRow, int]], progress: float) -> Tensor:
        """Return the cross-entropy of what follows the first word, for pairs of a row and the id of its start."""
        made, starts = zip(*rows, strict=True)
        device, pad = self.generator.device, self.generator.config.pad_token_id or 0
        prompts, mask = (part.to(device) for part in pad_left([row.prompt for row in made], pad))
        text, text_mask = pad_right([row.reasoning[1:] + row.answer for row in made], pad, device)
        words = self.generator.get_input_embeddings()
        first, start = (
            words(torch.tensor(ids, device=device)[:, None]) for ids in ([row.reasoning[0] for row in made], starts)
        )
        share = faded(progress, FADING)
        if share < 1:
            noise = torch.randn_like(first) * word_embeddings(self.generator).detach().std()
            first = torch.lerp(start, first + noise, share)
        embeds = torch.cat([words(prompts), first], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return continuation_loss(self.generator, embeds, mask, text, text_mask)[0]


def _start_id(tokenizer: PreTrainedTokenizerBase, row: dict) -> int:
    ids = tokenizer(row["start"], add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"start={row['start']!r} is {len(ids)} tokens: pass a word of one token, with its space.")
    return ids[0]
