"""Pause (arXiv 2310.02226): learned pause tokens between the question and the answer."""

from torch import nn

from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel
from .token_rows import tokenize_rows
from .training import Setting, Trained, count_trainable, fit


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


def train_pause(setting: Setting) -> Trained:
    """Host and pause embedding are trained."""
    model = PauseModel(setting.host, answer_prompt_ids(setting.tokenizer), setting.num_implicit_tokens)
    history = fit(model, tokenize_rows(setting.tokenizer, setting.train_rows), setting)
    return Trained(model, "semcot", count_trainable(model), **history)
