"""Pause (arXiv 2310.02226): learned pause tokens between the question and the answer."""

from torch import nn

from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel
from .token_rows import tokenize_rows
from .training import Trained, TrainingSetup, count_trainable, fit


class PauseModel(LatentModel):
    """The host with k copies of one learned embedding before the answer prompt."""

    def __init__(self, host, answer_prompt_ids, num_latents):
        super().__init__(host, answer_prompt_ids, num_latents)
        words = self.get_input_embeddings().weight
        self.pause = nn.Parameter(words.detach().mean(dim=0))

    def think(self, ids, mask, count):
        """The pause embedding (batch, k, hidden); nothing has to be run for it."""
        return self.pause.expand(ids.shape[0], count, -1), None

    def forward(self, rows, progress):
        """CE(answer | question, pauses) of a list of `BenchRow`s; the pauses themselves are not predicted."""
        count = self.config.num_implicit_tokens
        return self.latent_loss([row.prompt for row in rows], [row.answer for row in rows], count)[0]


def train_pause(setup: TrainingSetup) -> Trained:
    """Host and pause embedding are trained."""
    model = PauseModel(setup.host, answer_prompt_ids(setup.tokenizer), setup.num_implicit_tokens)
    history = fit(model, tokenize_rows(setup.tokenizer, setup.train_rows), setup)
    return Trained(model, "semcot", count_trainable(model), **history)
