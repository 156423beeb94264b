"""No CoT and explicit CoT, fine-tuned: the two ends that every other figure must stand between."""

from torch import nn

from .latents import LatentModel
from .token_rows import tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit


class TextModel(nn.Module):
    """A host trained on text alone: cross-entropy of what follows each question (supervised fine-tuning).

    Args:
        host: causal LM; all of it is trained.
        continuation: gives the ids that follow the question, from a `BenchRow` and the progress in [0, 1).
    """

    def __init__(self, host, continuation):
        super().__init__()
        self.latent_free = LatentModel(host, (), 0)
        self.continuation = continuation

    def forward(self, rows, progress):
        """The loss of a list of `BenchRow`s."""
        continuations = [self.continuation(row, progress) for row in rows]
        return self.latent_free.latent_loss([row.prompt for row in rows], continuations, 0)[0]


def train_on_text(setup: TrainingSetup, continuation, answered_by, stage=None) -> Trained:
    """Fine-tune the host on `continuation`; see `TextModel` and `fit`."""
    model = TextModel(setup.host, continuation)
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup, stage)
    return Trained(setup.host, answered_by, count_trainable(model), **history)


def train_no_cot(setup: TrainingSetup) -> Trained:
    """The host learns to answer at once: CE(answer | question)."""
    return train_on_text(setup, lambda row, _: row.answer, "no_cot")


def train_cot(setup: TrainingSetup) -> Trained:
    """The host learns to reason in words: CE(reasoning, answer | question)."""
    return train_on_text(setup, lambda row, _: row.reasoning + row.answer, "cot")
