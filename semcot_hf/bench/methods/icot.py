"""ICoT-SI, stepwise internalisation (arXiv 2405.14838): reasoning tokens are removed from the left during training."""

import math

import torch

from .finetuning import train_on_text
from .token_rows import BenchRow, tokenize_rows
from .training import Trained, TrainingSetup

TOKENS_PER_STAGE = 8
JITTER = 4.0
# Share of the training in which tokens are removed; the rest trains without any reasoning.
REMOVAL_SHARE = 0.75


def removal_offset(uniform: float) -> int:
    """Return the removal jitter o with P(o) proportional to exp(-4 o), from a uniform number in [0, 1) (section 3.2).

    >>> removal_offset(0.5), removal_offset(0.99), removal_offset(0.9999)
    (0, 1, 2)
    """
    return int(-math.log1p(-uniform) / JITTER)


def remaining(row: BenchRow, stage: int, offset: int) -> list[int]:
    """Return the row's reasoning without its first 8 * stage + offset tokens, and the answer.

    >>> remaining(BenchRow(prompt=[1], steps=[list(range(10, 16)), list(range(16, 22))], answer=[7]), 1, 1)
    [19, 20, 21, 7]
    """
    return row.reasoning[TOKENS_PER_STAGE * stage + offset :] + row.answer


def train_icot(setup: TrainingSetup) -> Trained:
    """Train on CE(remaining reasoning, answer | question); the optimizer is reset at every 8 removed tokens."""
    rows = tokenize_rows(setup.tokenizer, setup.train_rows)
    stages = math.ceil(max(len(row.reasoning) for row in rows) / TOKENS_PER_STAGE)
    generator = torch.Generator().manual_seed(setup.seed)

    def stage(progress: float) -> int:
        return min(stages, int(progress / REMOVAL_SHARE * stages))

    def continuation(row: BenchRow, progress: float) -> list[int]:
        offset = removal_offset(torch.rand((), generator=generator).item())
        return remaining(row, stage(progress), offset)

    return train_on_text(setup, continuation, "no_cot", stage)
