"""No CoT, explicit CoT and condensed CoT, fine-tuned: the baselines."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from .latents import LatentModel
from .token_rows import BenchRow, tokenize_rows
from .training import Stage, Trained, TrainingSetup, count_trainable, fit

# The ids that follow the question, from a row and the progress in [0, 1).
Continuation = Callable[[BenchRow, float], list[int]]


class TextModel(nn.Module):
    """A host with the loss of supervised fine-tuning: cross-entropy of what follows each question.

    Args:
        host: causal LM; all of it is trained.
        continuation: what follows the question.
    """

    def __init__(self, host: PreTrainedModel, continuation: Continuation) -> None:
        super().__init__()
        self.latent_free = LatentModel(host, (), 0)
        self.continuation = continuation

    def forward(self, rows: Sequence[BenchRow], progress: float) -> Tensor:
        """Return the loss of a list of rows at a progress in [0, 1)."""
        continuations = [self.continuation(row, progress) for row in rows]
        return self.latent_free.latent_loss([row.prompt for row in rows], continuations, 0)[0]


def train_on_text(
    setup: TrainingSetup, continuation: Continuation, answered_by: str, stage: Stage | None = None
) -> Trained:
    """Fine-tune the host on `continuation`, in float32, see `TextModel` and `fit`; then it has its precision again."""
    model, dtype = TextModel(setup.host, continuation), setup.host.dtype
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup, stage)
    cast(nn.Module, setup.host).to(dtype)
    return Trained(setup.host, answered_by, count_trainable(model), **history)


def train_no_cot(setup: TrainingSetup) -> Trained:
    """Train the host to answer at once: CE(answer | question)."""
    return train_on_text(setup, lambda row, _: row.answer, "no_cot")


def train_cot(setup: TrainingSetup) -> Trained:
    """Train the host to reason in words: CE(reasoning, answer | question)."""
    return train_on_text(setup, lambda row, _: row.reasoning + row.answer, "cot")


def train_condensed(setup: TrainingSetup) -> Trained:
    """Train the host to reason in the rows' condensed reasoning: CE(condensed reasoning, answer | question).

    Raises:
        ValueError: for rows without condensed reasoning.
    """
    missing = sum(not row.get("condensed_reasoning") for row in setup.train_rows)
    if missing:
        raise ValueError(
            f"{missing} of {len(setup.train_rows)} training rows have no condensed reasoning, which the method "
            "'condensed' learns: write it with `semcot condense`, or leave the method out."
        )
    rows = [{**row, "reasoning": (short := row["condensed_reasoning"]), "steps": [short]} for row in setup.train_rows]
    return train_cot(replace(setup, train_rows=rows))
