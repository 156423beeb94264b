"""Pause (arXiv 2310.02226), prompt tuning (arXiv 2104.08691): learned tokens between the question and the answer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...inference.prompting import answer_prompt_ids
from .latents import LatentModel, train_latents, word_embeddings
from .token_rows import BenchRow
from .training import Trained, TrainingSetup


class PauseModel(LatentModel):
    """A host with k copies of one learned embedding before the answer prompt."""

    def __init__(self, host: PreTrainedModel, answer_prompt_ids: Sequence[int], num_latents: int) -> None:
        super().__init__(host, answer_prompt_ids, num_latents)
        self.pause = nn.Parameter(word_embeddings(host).detach().mean(dim=0))

    def think(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, None]:
        """Return the pause embedding (batch, k, hidden); the host does not run."""
        return self.pause.expand(len(ids), count, -1), None

    def losses(self, rows: Sequence[BenchRow], progress: float) -> tuple[Tensor, Tensor | None]:
        """Return CE(answer | question, pauses), and the pauses, which are not predicted themselves."""
        count = self.config.num_implicit_tokens
        return self.latent_loss([row.prompt for row in rows], [row.answer for row in rows], count)[:2]


class PromptTuningModel(PauseModel):
    """A frozen host with k learned embeddings before the answer prompt, the same for every question.

    They start as the embeddings of random words, in float32 whatever the host's precision.
    """

    def __init__(self, host: PreTrainedModel, answer_prompt_ids: Sequence[int], num_latents: int) -> None:
        super().__init__(host.requires_grad_(False), answer_prompt_ids, num_latents)
        words = word_embeddings(host).detach()
        chosen = torch.randperm(len(words))[:num_latents].to(words.device)
        self.pause = nn.Parameter(words[chosen].float())

    def train(self, mode: bool = True) -> "PromptTuningModel":
        """Set training mode, except for the frozen host."""
        super().train(mode)
        self.host.eval()
        return self

    def think(self, ids: Tensor, mask: Tensor, count: int) -> tuple[Tensor, None]:
        """Return the first `count` embeddings (batch, count, hidden); the host does not run."""
        if count > len(self.pause):
            raise ValueError(f"num_implicit_tokens={count}: the model has {len(self.pause)}; ask for fewer.")
        return self.pause[:count].expand(len(ids), -1, -1), None


def train_pause(setup: TrainingSetup) -> Trained:
    """Train the host and the pause embedding."""
    model = PauseModel(setup.host, answer_prompt_ids(setup.tokenizer), setup.num_implicit_tokens)
    return train_latents(model, setup)


def train_prompt_tuning(setup: TrainingSetup) -> Trained:
    """Train k embeddings behind the questions of a frozen host, by the answer's cross-entropy."""
    torch.manual_seed(setup.seed)
    model = PromptTuningModel(setup.host, answer_prompt_ids(setup.tokenizer), setup.num_implicit_tokens)
    return train_latents(model, setup)
